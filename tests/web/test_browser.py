"""The page in a real browser: every view at a phone's and a desk's width, its console, its
accessibility, and what hands do there."""

import contextlib
import re
import shutil
from pathlib import Path

import pytest
from helpers import TOY
from toy_page import CHROMIUM, endless_run, save_toy, started

from fluxsmith.cli import main
from fluxsmith.config import read_config, show
from fluxsmith.training.recorder import read_metrics

pytest.importorskip("playwright", reason="needs playwright")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; apt-get install chromium"),
]

VIEWS = ("draw", "branch", "sketch", "learn", "inside", "compare")
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
# Takes the first of the finished pictures over, and says whether the board shows it then.
TAKE = """() => {
  const way = document.querySelector(".pictures canvas").toDataURL();
  document.querySelector(".pictures button").click();
  return document.querySelector("main canvas").toDataURL() === way;
}"""
# Plays the film, and tells what its button said until the end.
PLAY = """() => new Promise((done) => {
  const button = document.querySelector(".film button"), said = [];
  new MutationObserver(() => {
    said.push(button.textContent);
    if (button.textContent === "Play") done(said);
  }).observe(button, { childList: true });
  button.click();
})"""
# Pauses the film at the first state that it shows, and tells which that is.
PAUSE = """() => new Promise((done) => {
  const [button, scrub] = document.querySelectorAll(".film button, .film input[type=range]");
  new MutationObserver((_, seen) => {
    seen.disconnect();
    button.click();
    done(scrub.value);
  }).observe(scrub, { attributeFilter: ["aria-valuetext"] });
  button.click();
})"""
# Moves the guidance at every frame until three quick drawings were shown.
SLIDE = """(slider) => new Promise((done) => {
  const pictures = document.querySelector(".pictures");
  let i = 0;
  const move = () => {
    if (+pictures.dataset.quick >= 3) { done(); return; }
    slider.value = (i += 1) % 8;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    requestAnimationFrame(move);
  };
  move();
})"""
# Moves the guidance to 5 while the browser refuses to write the address: how often that was tried
# before the slider was let go, and then.
REFUSED = """(slider) => {
  const write = history.replaceState;
  let tried = 0;
  history.replaceState = () => {
    tried += 1;
    throw new DOMException("too often", "SecurityError");
  };
  for (let value = 1; value <= 5; value += 0.25) {
    slider.value = value;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  }
  const moving = tried;
  slider.dispatchEvent(new Event("change", { bubbles: true }));
  history.replaceState = write;
  return [moving, tried];
}"""
SAMPLE = """() => fetch("/api/runs/long/snapshot",
  { method: "POST", headers: { "content-type": "application/json" }, body: "{}" })"""
PATIENCE = 120_000  # ms; nothing here is about time
DRAWN = ".view[data-drawn]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def address(folder):
    """Of a page with a model, and a finished run that kept snapshots."""
    config = folder / "run.yaml"
    config.write_text(f"{TOY}name: run\noutput_dir: {folder / 'run'}\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["train", str(config), "train.snapshots=4"])
    with started(save_toy(folder / "toy"), folder / "run", cwd=folder) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=ARGUMENTS, timeout=PATIENCE
        )
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, address, width=1280, scheme="light", refused="nothing", ready=DRAWN):
    """A page at this address, on whose console there must be no error in the end but for what the
    browser says itself of a request that is to be refused."""
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.set_default_timeout(PATIENCE)
    wrong = []
    page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(address)
    page.wait_for_selector(ready)
    yield page
    page.close()
    assert [line for line in wrong if refused not in line] == []


def pixels(page, canvas="main canvas") -> str:
    return page.evaluate("s => document.querySelector(s).toDataURL()", canvas)


def here(page) -> str:
    return page.evaluate("location.href")


def wait_for_change(page, before, canvas="main canvas"):
    for _ in range(PATIENCE // 200):
        if pixels(page, canvas) != before:
            return
        page.wait_for_timeout(200)
    raise AssertionError("the picture stayed as it was")


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light"), (2000, "dark")])
@pytest.mark.parametrize("view", VIEWS)
def test_every_view_is_whole_and_accessible(browser, address, view, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    with opened(browser, f"{address}#/{view}", width, scheme) as page:
        found = Axe().run(page).response["violations"]
        assert [(v["id"], v["nodes"][0]["target"]) for v in found] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("nav a[aria-current]").count() == 1


def test_settings_live_in_the_address_and_keys_choose_prompts(browser, address):
    with opened(browser, f"{address}#/draw?guidance=3&steps=3&prompt=3&pictures=1") as page:
        assert page.get_by_label("Guidance").input_value() == "3"
        before = pixels(page)
        page.get_by_role("radio", name="3", exact=True).first.press("ArrowRight")
        assert "prompt=4" in here(page)
        assert page.get_by_label("What to draw").input_value() == "4"
        wait_for_change(page, before)
        scrub = page.get_by_label("The way from noise")
        end = pixels(page)
        scrub.press("ArrowLeft")
        assert re.search(r"at=2(&|$)", here(page)) and pixels(page) != end
        assert "state 2 of 3" in scrub.get_attribute("aria-valuetext")
        state, link = pixels(page), here(page)
    with opened(browser, link) as page:
        assert pixels(page) == state


def test_a_slider_that_moves_shows_pictures_and_needs_no_address(browser, address):
    with opened(browser, f"{address}#/draw?steps=8&pictures=1") as page:
        slider = page.get_by_label("Guidance")
        slider.evaluate(SLIDE)
        assert slider.evaluate(REFUSED) == [0, 1]
        page.wait_for_url(re.compile("guidance=5"))
        page.locator(".view[data-drawn]").wait_for()


def test_a_link_means_what_its_controls_show(browser, address):
    with opened(browser, f"{address}#/draw?guidance=15&steps=-3&pictures=1&prompt=") as page:
        assert page.get_by_label("What to draw").input_value() == ""
        page.get_by_role("button", name="New noise").click()
        assert "prompt=&guidance=8&steps=1&" in here(page)
    with opened(browser, f"{address}#/sketch?prompt=") as page:
        assert page.get_by_label("What it shall become").input_value() == ""


def test_a_model_begins_with_its_own_prompts_and_a_student_with_its_own_steps(browser, folder):
    few = ("name=letters", "objective.kind=trajectory_distillation", "objective.teacher=none",
           "objective.steps=2", "sample.steps=2", "sample.guidance_method=none",
           "sample.guidance=1")  # fmt: skip
    save_toy(folder / "few", *few, name="letters", captions=["an a", "a b"])
    config = read_config(folder / "few" / "letters.yaml", few)
    (folder / "few" / "config.yaml").write_text(show(config), encoding="utf-8")
    with started(save_toy(folder / "plain"), folder / "few", cwd=folder) as address:
        with opened(browser, f"{address}#/draw?model=letters") as page:
            assert page.get_by_label("What to draw").input_value() == "an a"
            assert page.get_by_label("Steps").input_value() == "2"
            page.get_by_label("Model", exact=True).select_option("toy")
            assert page.get_by_label("What to draw").input_value() == "seven"
        with opened(browser, f"{address}#/branch?model=letters") as page:
            assert page.get_by_label("Steps").input_value() == "2"
        with opened(browser, f"{address}#/branch?model=toy&by=scales&scales=1,,2") as page:
            assert page.locator(".paths b").all_inner_texts() == ["guidance 1", "guidance 2"]
            for model in ("letters", "toy"):
                page.get_by_label("Model", exact=True).select_option(model)
            assert page.get_by_role("radio", name="Prompts").is_checked()
        with opened(browser, f"{address}#/sketch?model=letters") as page:
            page.get_by_text("50% drawn anew").wait_for()
            page.get_by_label("What it shall become").fill("my own")
            page.get_by_label("Model", exact=True).select_option("toy")
            assert page.get_by_label("What it shall become").input_value() == "my own"
            page.get_by_text("70% drawn anew").wait_for()
        with opened(browser, f"{address}#/learn?run=letters") as page:
            assert page.locator(".map tbody th").all_inner_texts() == ["1.0", "0.5", "0.0"]


def test_a_picture_is_saved_and_a_mistake_is_a_message(browser, address):
    with opened(browser, f"{address}#/draw?steps=2&pictures=1") as page:
        for kind, magic in (("PNG", b"\x89PNG"), ("GIF", b"GIF8"), ("Filmstrip", b"\x89PNG")):
            with page.expect_download() as download:
                page.get_by_role("button", name=kind).click()
            assert Path(download.value.path()).read_bytes().startswith(magic)
            page.get_by_text("saved").wait_for()
        page.get_by_label("What to draw").fill("word " * 2000)
        page.get_by_role("alert").filter(has_text="shorten the prompt").wait_for()
        before = pixels(page)
        page.get_by_label("What to draw").fill("7")
        wait_for_change(page, before)
        assert page.get_by_role("alert").count() == 0


def test_back_returns_to_the_view_before_and_an_unknown_model_is_a_message(browser, address):
    with opened(browser, f"{address}#/draw?steps=2&pictures=1") as page:
        page.get_by_label("Guidance").press("ArrowRight")
        page.get_by_role("link", name="Branch").click()
        page.get_by_label("Prompts, one a line").wait_for()
        page.go_back()
        page.get_by_label("What to draw").wait_for()
        page.goto(f"{address}#/draw?model=nobody")
        page.get_by_role("alert").filter(has_text="There is no model nobody here").wait_for()


def test_a_film_plays_to_its_end(browser, address):
    with opened(browser, f"{address}#/draw?steps=3&pictures=1&at=0") as page:
        noise = pixels(page)
        assert page.evaluate(PLAY) == ["Pause", "Play"]
        scrub = page.get_by_label("The way from noise")
        assert "state 3 of 3" in scrub.get_attribute("aria-valuetext") and pixels(page) != noise
        at = page.evaluate(PAUSE)
        assert f"at={at}" in here(page) and scrub.input_value() == at


def test_paths_are_marked_and_scales_part_from_one_prompt(browser, address):
    with opened(browser, f"{address}#/branch?steps=3&prompts=3%0A7") as page:
        paths = page.locator("svg[viewBox^='0 0 420'] polyline")
        assert paths.count() == 2
        page.get_by_role("button", name=re.compile("^7")).click()
        assert page.locator("svg[viewBox^='0 0 420'] g.dim text").all_text_contents() == ["3"]
        assert "marked=1" in here(page)
        page.locator("fieldset").get_by_text("Guidance").click()
        page.get_by_role("button", name=re.compile("^guidance 8")).wait_for()
        assert "by=scales" in here(page) and paths.count() == 8


def test_a_word_s_attention_is_shown_and_a_box_opens_to_its_code(browser, address):
    with opened(browser, f"{address}#/inside?steps=3&prompt=a+red+seven") as page:
        assert page.locator(".looks figure").count() == 2
        first = pixels(page, ".looks canvas")
        page.get_by_role("radiogroup", name="Word").get_by_text("seven").click()
        assert pixels(page, ".looks canvas") != first and "word=2" in here(page)
        page.get_by_role("button", name=re.compile("^joint attention")).click()
        code = page.get_by_label("The code of this part")
        code.filter(has_text="def joint_attention(").wait_for()


def test_a_run_is_compared_with_itself_before(browser, address):
    with opened(browser, f"{address}#/compare?model=run&other=run&prompts=3") as page:
        page.get_by_text("differ by 0.0%").wait_for()
        page.get_by_role("combobox", name="Second model").select_option("run@1")
        page.get_by_role("cell", name="1 steps", exact=True).wait_for()
        assert page.get_by_text("differ by 0.0%").count() == 0


def test_leaving_in_the_middle_stops_the_work(browser, address):
    with opened(browser, f"{address}#/draw?steps=2") as page:
        for settings, done in (("steps=200&pictures=16&solver=midpoint", ""), ("steps=2", DRAWN)):
            page.evaluate("document.querySelector('.view').id = 'old'")
            page.goto(f"{address}#/draw?{settings}&seed=9")
            page.wait_for_selector(f"{done or '.view'}:not(#old)")


def test_a_sketch_is_drawn_on_by_mouse_and_keys(browser, address, folder):
    with opened(browser, f"{address}#/sketch") as page:
        board = page.get_by_role("application")
        box = board.bounding_box()
        first, result = pixels(page), pixels(page, ".pictures canvas")
        page.mouse.move(box["x"] + 100, box["y"] + 60)
        page.mouse.down()
        page.mouse.move(box["x"] + 140, box["y"] + 200, steps=4)
        page.mouse.up()
        second = pixels(page)
        assert second != first
        wait_for_change(page, result, ".pictures canvas")
        board.press("ArrowLeft")
        board.press("Space")
        assert pixels(page) != second
        page.get_by_role("button", name="Undo").click()
        assert pixels(page) == second
        page.get_by_text("Mark", exact=True).click()
        page.mouse.move(box["x"] + 60, box["y"] + 60)
        page.mouse.down()
        page.mouse.move(box["x"] + 90, box["y"] + 160, steps=4)
        page.mouse.up()
        assert pixels(page) == second  # the mark lies on the sketch, it is no part of it
        page.get_by_text("the marked part drawn anew").wait_for()
        assert page.evaluate(TAKE)
        (folder / "notes.png").write_text("no picture")
        page.locator("input[type=file]").set_input_files(folder / "notes.png")
        page.get_by_role("alert").filter(has_text="is no picture").wait_for()
        sketch = pixels(page)
        page.get_by_role("link", name="Branch").click()
        page.get_by_label("Prompts, one a line").wait_for()
        page.get_by_role("link", name="Draw on it").click()
        board.wait_for()
        assert pixels(page) == sketch
        page.get_by_role("button", name="Undo").click()
        assert pixels(page) == second


def test_a_run_is_started_watched_and_opened_in_draw(browser, address, folder):
    with opened(browser, f"{address}#/learn?run=run", refused="status of 400") as page:
        page.get_by_label("Config").select_option("run")
        page.get_by_role("button", name="Train a new one").click()
        page.wait_for_url(re.compile("run=run-1"))
        page.get_by_text("step 6 of 6, finished").wait_for()
        assert page.get_by_label("Run", exact=True).input_value() == "run-1"
        page.locator(".map td button[aria-label*='at step 6']").first.wait_for()
        columns = page.locator(".map thead th").all_text_contents()
        assert columns[1] == "1" and columns[-1] == "6"
        page.locator(".map [tabindex='0']").press("ArrowDown")
        page.locator(".map :focus").press("Enter")
        page.wait_for_url(re.compile(r"#/draw\?model=run-1%40\d"))
        page.get_by_label("What to draw").wait_for()  # the address changes before the view does
        page.wait_for_selector(".view[data-drawn]")
        records = read_metrics(folder / "output" / "page" / "run-1" / "metrics.jsonl")
        assert any("validation_loss/ema" in record for record in records)
        page.goto(f"{address}#/learn?run=run-1")
        page.locator(".map td button[aria-label*='at step 6']").first.wait_for()
        shutil.rmtree(folder / "output" / "page" / "run-1")
        page.get_by_role("alert").filter(has_text="is gone").wait_for()


def test_a_run_without_a_checkpoint_is_begun_watched_and_stopped(browser, tmp_path):
    with (
        started(endless_run(tmp_path / "long"), cwd=tmp_path) as address,
        opened(browser, address, ready="[role=alert]") as page,
    ):
        assert "No model here has a checkpoint yet" in page.get_by_role("alert").inner_text()
        page.get_by_role("link", name="Watch it learn").click()
        page.get_by_text("step 0 of 100,000, stopped").wait_for()
        page.get_by_role("button", name="Go on").click()
        page.get_by_text(re.compile(r"step \d+ of 100,000, training")).wait_for()
        page.wait_for_selector(DRAWN)
        columns = page.locator(".map thead th")
        before = columns.count()
        page.get_by_role("button", name="Sample now").click()
        columns.nth(before).wait_for()
        newest = page.locator(".map tbody tr").first.locator("button").nth(before - 1)
        newest.and_(page.locator("[aria-label*='open in Draw']")).wait_for()
        page.locator(".map [tabindex='0']").press("ArrowDown")
        cell = re.compile(r"step 1, t = 0\.8")
        assert cell.search(page.locator(".map :focus").get_attribute("aria-label"))
        before = columns.count()
        page.evaluate(SAMPLE)
        columns.nth(before).wait_for()
        assert cell.search(page.locator(".map :focus").get_attribute("aria-label"))
        page.get_by_role("button", name="Stop training").click()
        page.get_by_text(re.compile(r"of 100,000, stopped")).wait_for()
        curve = page.locator("svg polyline").first
        rough = curve.get_attribute("points")
        page.get_by_label("Smoothing").fill("0.95")
        assert curve.get_attribute("points") != rough
        page.locator(".map td button[aria-label*='open in Draw']").last.hover()
        shown = page.locator(".preview + figcaption")
        assert re.fullmatch(r"step [\d,]+", shown.inner_text())
