"""A page over a toy model, in this process or as people start it."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers import TOY, randomise

from fluxsmith import Pipeline
from fluxsmith.config import read_config
from fluxsmith.interop.importing import contents
from fluxsmith.interop.read_weights import Weights
from fluxsmith.storage import checkpoint as checkpoints

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CAPTIONS = [f"{n}" for n in range(10)] + ["zero", "one", "two", "three", "seven"]


def save_toy(
    folder: Path, *overrides: str, step: int = 7, name: str = "toy", captions: list[str] = CAPTIONS
) -> Path:
    """A checkpoint of random weights in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / f"{name}.yaml"
    config.write_text(TOY + f"output_dir: {folder / 'run'}\n", encoding="utf-8")
    pipeline = Pipeline.build(read_config(config, overrides))
    randomise(pipeline)
    own = pipeline.state_dict()
    parts = {
        part: {n.removeprefix(part): t for n, t in own.items() if n.startswith(part)}
        for part in ("network.", "text.")
    }
    about = {"captions": captions, "autoencoder": pipeline.autoencoder.digest}
    weights = Weights("fluxsmith", name, parts["network."], text=parts["text."], step=step)
    path = folder / f"diffusion-{step}.pt"
    whole = contents(weights, pipeline.config)
    checkpoints.save(path, {**whole, "metadata": {**whole["metadata"], **about}})
    return path


def endless_run(folder: Path) -> Path:
    """The folder of a run that takes for ever and hasn't begun; its config names another one."""
    folder.mkdir()
    config = TOY.replace("steps: 6", "steps: 100000, snapshots: 2, sample_every: 0")
    config = config.replace("log_every: 2", "log_every: 1")
    config += f"name: {folder.name}\noutput_dir: {folder.parent / 'elsewhere'}\n"
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    return folder


def events(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def drawn(text: str) -> list[dict]:
    """The states among the events, noise first."""
    return [event for event in events(text) if "state" in event]


@contextmanager
def started(*models: object, cwd: Path) -> Iterator[str]:
    """The address of a page that was started as people do it."""
    command = [sys.executable, "-m", "fluxsmith", "serve", *map(str, models), "--no-browser"]
    process = subprocess.Popen([*command, "--port", "0"], cwd=cwd, stdout=subprocess.PIPE)
    try:
        page, address = process.stdout.readline().decode().split()
        assert page == "page" and re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        yield address
    finally:
        process.terminate()
        assert process.wait(60) in (0, -15, 143)


def wait_until(true, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
