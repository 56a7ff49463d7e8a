"""How quick the page is, in a real browser: python benchmarks/page.py [MODEL] [--seconds 60]

Prints the time from the command to the first picture; from a change of the guidance slider to the
quick and to the full pictures; how 20 clients fare that draw at once. With --learn: how soon a run
that is started on the page shows its first pictures, and what a watcher costs its training
(--rounds of it); with --train CONFIG: the processor time of a run with snapshots beside one
without. Needs the extra `web`, playwright and a Chromium (`chromium` in the path).
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

CLIENTS = 20
CHANGES = 10  # of the slider

# Moves the slider and waits for the pictures: {quick, full} in milliseconds.
MOVE = """(value) => new Promise((done) => {
  const sliders = [...document.querySelectorAll("input[type=range]")];
  const slider = sliders.find((one) => one.labels[0].textContent === "Guidance");
  const root = document.querySelector(".view"), began = performance.now(), seen = {};
  new MutationObserver((changes, observer) => {
    for (const change of changes)
      seen[change.attributeName === "data-drawn" ? "full" : "quick"] ??= performance.now() - began;
    if (seen.full) { observer.disconnect(); done(seen); }
  }).observe(root, { subtree: true, attributeFilter: ["data-drawn", "data-quick"] });
  slider.value = value;
  slider.dispatchEvent(new Event("input"));
})"""


@contextmanager
def serving(model: str, folder: str | None = None) -> Iterator[str]:
    command = [sys.executable, "-m", "fluxsmith", "serve", model, "--no-browser", "--port", "0"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().split()[1]
    finally:
        process.terminate()
        process.wait()


def change_guidance(page: Page, address: str, pictures: int) -> None:
    page.goto("about:blank")
    page.goto(f"{address}#/draw?pictures={pictures}")
    page.wait_for_selector(".view[data-drawn]")
    found = [page.evaluate(MOVE, 1 + 0.3 * i) for i in range(1, CHANGES + 1)]
    for what in ("quick", "full"):
        times = [one[what] / pictures for one in found if what in one]
        if times:
            middle, worst = statistics.median(times), max(times)
            print(
                f"guidance to {what} pictures, {pictures} at once: {middle:.0f} ms a picture",
                end="",
            )
            print(f" (worst of {len(times)}: {worst:.0f})")


def draw_together(address: str, seconds: float) -> None:
    """CLIENTS that draw again and again; a request that fails is lost."""
    model = json.loads(urllib.request.urlopen(f"{address}api/models").read())[0]
    times, lost = [], []
    end = time.perf_counter() + seconds

    def client(number: int) -> None:
        body = {"model": model["name"], "prompts": [model["prompts"][0]], "seed": number}
        body |= {"steps": 8, "guidance": model["defaults"]["guidance"]}
        headers = {"content-type": "application/json"}
        while time.perf_counter() < end:
            began = time.perf_counter()
            request = urllib.request.Request(
                f"{address}api/draw", json.dumps(body).encode(), headers
            )
            try:
                lines = urllib.request.urlopen(request).read().splitlines()
                assert json.loads(lines[-2])["t"] == 0
                times.append(time.perf_counter() - began)
            except Exception as error:
                lost.append(str(error))

    threads = [threading.Thread(target=client, args=(i,)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(
        f"{CLIENTS} clients for {seconds:.0f} s: {len(times)} drawings, {len(lost)} lost", *lost[:1]
    )
    print(f"one of them took {statistics.median(times):.2f} s (worst {max(times):.2f})")


def learn(page: Page, model: str, rounds: int) -> None:
    """Runs by the model's config, watched from their start, each between two left alone."""
    with tempfile.TemporaryDirectory() as folder, serving(model, folder) as address:
        runs = Path(folder, "output", "page")

        def trained(watched: bool) -> float:
            """The seconds of training, by the run's own records."""
            page.goto("about:blank")
            page.goto(f"{address}#/learn")
            page.get_by_label("Config").select_option(model)
            number = len([*runs.glob("*")]) + 1
            page.get_by_role("button", name="Train a new one").click()
            began = time.perf_counter()
            page.wait_for_url(f"**run={model}-{number}*")
            if watched:
                cell = page.locator(".map td button[aria-label*='open in Draw']")
                cell.first.wait_for()
                seconds = time.perf_counter() - began
                print(f"from the start of a run to its first column: {seconds:.1f} s")
            else:
                page.goto("about:blank")
            run = runs / f"{model}-{number}"
            while not [*run.glob("diffusion-*.pt")] or (run / ".lock").exists():
                time.sleep(1)
            if watched:
                drawn = page.locator("[data-drawn]").first.get_attribute("data-drawn")
                print(f"columns that were drawn meanwhile: {drawn}")
            records = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
            speeds = [record["images_per_second"] for record in records if "loss" in record]
            return sum(1 / speed for speed in speeds)

        alone, ratios = [trained(False)], []
        for _ in range(rounds):
            watched = trained(True)
            alone.append(trained(False))
            ratios.append(2 * watched / sum(alone[-2:]))
        shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        middle = statistics.median(ratios)
        print(f"training with a watcher took {middle:.3f} of the time without (of {shown})")


def snapshots_cost(config: str) -> None:
    used = []
    for snapshots in (0, 24):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with tempfile.TemporaryDirectory() as folder:
            settings = [f"train.snapshots={snapshots}", f"output_dir={folder}/run"]
            command = [sys.executable, "-m", "fluxsmith", "train", config, *settings]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    plain, kept = used
    print(f"a run took {plain:.1f} s of processors, with 24 snapshots {kept:.1f} s", end="")
    print(f" ({100 * (kept / plain - 1):+.1f}%)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="digits-tiny")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--learn", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--train", metavar="CONFIG")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page()
        page.set_default_timeout(300_000)
        began = time.perf_counter()
        with serving(options.model) as address:
            page.goto(address)
            page.wait_for_selector(".view[data-drawn]")
            print(f"from the command to the first pictures: {time.perf_counter() - began:.1f} s")
            for pictures in (1, 4):
                change_guidance(page, address, pictures)
            page.goto("about:blank")
            draw_together(address, options.seconds)
        if options.learn:
            learn(page, options.model, options.rounds)
        browser.close()
    if options.train:
        snapshots_cost(options.train)


if __name__ == "__main__":
    main()
