"""The page in a real browser: every view at a phone's and a desk's width, its console, its
accessibility, and what hands do there."""

import contextlib
import re
import shutil

import pytest
from helpers import TOY
from toy_page import CHROMIUM, save_toy, started

from fluxsmith.cli import main

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
PATIENCE = 120_000  # ms; nothing here is about time


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
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, address, width=1280, scheme="light", refused="nothing"):
    """A page at this address, on whose console there must be no error in the end but for what the
    browser says itself of a request that is to be refused."""
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.set_default_timeout(PATIENCE)
    wrong = []
    page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(address)
    page.wait_for_selector(".view[data-drawn]")
    yield page
    page.close()
    assert [line for line in wrong if refused not in line] == []


def pixels(page, canvas="main canvas") -> str:
    return page.evaluate("s => document.querySelector(s).toDataURL()", canvas)


def wait_for_change(page, before, canvas="main canvas"):
    for _ in range(PATIENCE // 200):
        if pixels(page, canvas) != before:
            return
        page.wait_for_timeout(200)
    raise AssertionError("the picture stayed as it was")


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
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
        assert "prompt=4" in page.url
        assert page.get_by_label("What to draw").input_value() == "4"
        wait_for_change(page, before)
        scrub = page.get_by_label("The way from noise")
        end = pixels(page)
        scrub.press("ArrowLeft")
        assert re.search(r"at=2(&|$)", page.url) and pixels(page) != end
        assert "state 2 of 3" in scrub.get_attribute("aria-valuetext")
        state, link = pixels(page), page.url
    with opened(browser, link) as page:
        assert pixels(page) == state


def test_a_model_begins_with_its_own_prompts_and_a_student_with_its_own_steps(browser, folder):
    few = ("name=letters", "objective.kind=trajectory_distillation", "objective.teacher=none",
           "objective.steps=2", "sample.steps=2", "sample.guidance_method=none",
           "sample.guidance=1")  # fmt: skip
    letters = save_toy(folder / "few", *few, name="letters", captions=["an a", "a b"])
    with started(save_toy(folder / "plain"), letters, cwd=folder) as address:
        with opened(browser, f"{address}#/draw?model=letters") as page:
            assert page.get_by_label("What to draw").input_value() == "an a"
            assert page.get_by_label("Steps").input_value() == "2"
            page.get_by_label("Model", exact=True).select_option("toy")
            assert page.get_by_label("What to draw").input_value() == "seven"
        with opened(browser, f"{address}#/branch?model=letters") as page:
            assert page.get_by_label("Steps").input_value() == "2"


def test_a_picture_is_saved_and_a_mistake_is_a_message(browser, address):
    with opened(browser, f"{address}#/draw?steps=2&pictures=1") as page:
        with page.expect_download() as download:
            page.get_by_role("button", name="PNG").click()
        assert download.value.suggested_filename.endswith(".png")
        page.get_by_label("What to draw").fill("word " * 2000)
        page.get_by_role("alert").filter(has_text="shorten the prompt").wait_for()
        before = pixels(page)
        page.get_by_label("What to draw").fill("7")
        wait_for_change(page, before)
        assert page.get_by_role("alert").count() == 0


def test_leaving_in_the_middle_stops_the_work(browser, address):
    with opened(browser, f"{address}#/draw?steps=2") as page:
        page.goto(f"{address}#/draw?steps=200&pictures=16&solver=midpoint")
        page.wait_for_timeout(300)
        page.goto(f"{address}#/draw?steps=2&seed=9")
        page.wait_for_selector(".view[data-drawn]")


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
        (folder / "notes.png").write_text("no picture")
        page.locator("input[type=file]").set_input_files(folder / "notes.png")
        page.get_by_role("alert").filter(has_text="is no picture").wait_for()


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
        page.wait_for_selector(".view[data-drawn]")
        page.goto(f"{address}#/learn?run=run-1")
        page.wait_for_selector(".view[data-drawn]")
        shutil.rmtree(folder / "output" / "page" / "run-1")
        page.get_by_role("alert").filter(has_text="is gone").wait_for()
