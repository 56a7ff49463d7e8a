"""Runs are killed with `kill -9` at random, again and again, and then left to end: every byte that
they leave must be that of a run left alone.

Three kinds of run: pictures in memory; a stream of tar shards that threads decode; and the same
stream with pretrained encoders, whose embeddings are kept on disk.
"""

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from made_pictures import as_shards, items
from reliability.comparing import left_behind
from reliability.lives import Life, forked
from safetensors import safe_open
from tiny_encoders import save_clip, save_t5

from fluxsmith.config import read_config
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.tensor_cache import TensorCache
from fluxsmith.training.run import train

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

CONFIG = """
name: toy
output_dir: run
data: {source: digits, image_size: 8}
text: {width: 32, hidden_size: 64, depth: 0}
model: {patch_size: 4, hidden_size: 32, num_heads: 1, depth: 1, depth_single_blocks: 1,
        axes_dim: [8, 12, 12]}
train: {batch_size: 2, warmup_steps: 5, log_every: 3, learning_rate: 0.01,
        checkpoint_every: 4, keep_checkpoints: 3, keep_every: 40, sample_every: 40}
sample: {steps: 2, num_samples: 4}
evaluate: {every: 0}
"""
STREAM = {"source": "webdataset", "image_size": 8, "workers": 2, "shuffle_buffer": 7}
ENCODERS = {"encoder": "clip_t5", "t5_tokens": 24, "cache": "cache"}
PICTURES = 58  # so that blocks, shards and epochs end where batches don't
MOMENTS = {"writing": 0.001, "training": 0.5, "renaming": 0.02, "starting": 1.0}  # seconds, at most
TURNS = ("writing", "training", "renaming", "writing", "starting")
KILLS = int(os.environ.get("KILLS", "3"))  # of each kind


def sections(kind: str, data: Path) -> dict[str, dict[str, object]]:
    """What a kind of run changes in CONFIG; its data and encoders are made."""
    if kind == "memory":
        return {}
    changed = {"data": STREAM | {"path": as_shards(data, items(PICTURES, size=8), 5)}}
    if kind == "text":
        # in another process: threads of the libraries would not outlive a fork in good order
        assert forked(lambda: (save_clip(data / "clip"), save_t5(data / "t5"))) == 0
        paths = {"clip": str(data / "clip"), "t5": str(data / "t5")}
        changed["text"] = ENCODERS | paths
    return changed


class Run:
    """A run of `steps` steps in a folder of its own, lived in one life or in many."""

    def __init__(self, folder: Path, steps: int, changed: dict[str, dict[str, object]]) -> None:
        folder.mkdir()
        config = yaml.safe_load(CONFIG) | changed
        config["train"]["steps"] = steps
        (folder / "toy.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        self.folder, self.steps = folder, steps
        self.results = folder / "run"

    def start(self) -> Life:
        command = ("train", "toy.yaml", "--resume", "auto")
        return Life(self.folder / "log.txt", *command, prepare=lambda: os.chdir(self.folder))

    def let_end(self) -> None:
        life = self.start()
        assert life.wait(300) == 0, life.text()

    def writing(self) -> set[tuple[str, int]]:
        """The files, by name and inode, that checkpoints are being written to, or were when a life
        was killed."""
        if not self.results.exists():
            return set()
        with os.scandir(self.results) as entries:  # without a look at files that may be gone
            return {(e.name, e.inode()) for e in entries if e.name.endswith(".pt.tmp")}

    def kill(self, moment: str, draw: random.Random) -> bool:
        """Starts a life and kills it; False where it had ended before."""
        life = self.start()
        before, seen = self.writing(), set[tuple[str, int]]()
        writes = 0 if moment == "starting" else draw.randint(1, max(1, self.steps // 20))
        while len(seen) < writes and not life.ended():
            seen |= self.writing() - before
            time.sleep(0.0005)
        time.sleep(MOMENTS[moment] * draw.random())
        life.send(signal.SIGKILL)
        return life.wait() == -signal.SIGKILL


def everything_of(run: Run) -> dict[str, object]:
    """What a run leaves, the embeddings of its captions included."""
    found = left_behind(run.results)
    for path in (run.folder / "cache").glob("*/*.safetensors"):
        with safe_open(path, framework="pt") as file:
            prompts = json.loads(file.metadata()["index"])
        cache = TensorCache(path.parent, {}, "text.cache")
        found |= {prompt: [t.tolist() for t in cache.get(prompt).values()] for prompt in prompts}
    return found


def kill_often(parent: Path, kind: str, kills: int, steps: int) -> Counter[str]:
    """Kills runs of a kind so many times; each must end like the one that is left alone."""
    draw, counts = random.Random(f"kill/{kind}"), Counter[str]()
    changed = sections(kind, parent / "data")
    alone = Run(parent / "alone", steps, changed)
    alone.let_end()
    expected = everything_of(alone)

    def goes_on() -> bool:
        """Until there were as many, and one of them in the middle of a checkpoint."""
        more = counts["kills"] < kills or not counts["in the middle of a checkpoint"]
        return more and counts["kills"] < 20 * kills

    while goes_on():
        run = Run(parent / f"round-{counts['rounds']}", steps, changed)
        while goes_on():
            before = run.writing()
            if not run.kill(TURNS[counts["kills"] % len(TURNS)], draw):
                break
            counts["kills"] += 1
            counts["in the middle of a checkpoint"] += bool(run.writing() - before)
            for _, path in checkpoints.find(run.results):
                checkpoints.load(path)  # whole, or this raises
                counts["whole checkpoints"] += 1
        run.let_end()
        found = everything_of(run)
        assert found.keys() == expected.keys()
        assert [name for name in found if found[name] != expected[name]] == []
        counts["rounds"] += 1
    print(kind, dict(counts))
    return counts


@pytest.fixture(scope="module", autouse=True)
def everything_is_imported(tmp_path_factory):
    """So that a life begins at once. (In the foreground: a thread would not outlive a fork.)"""
    folder = tmp_path_factory.mktemp("first")
    changed = {"train": {"steps": 1, "batch_size": 2, "background_save": False}}
    Run(folder / "alone", 1, changed)
    assert train(read_config(folder / "alone" / "toy.yaml", [f"output_dir={folder / 'run'}"])) == 0


def test_killed_in_the_middle_of_a_checkpoint_it_ends_with_the_same_bytes(tmp_path):
    assert kill_often(tmp_path, "memory", 2, 12)["in the middle of a checkpoint"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "stream", "text"])
def test_killed_at_random_it_always_ends_with_the_same_bytes(tmp_path, kind):
    counts = kill_often(tmp_path, kind, KILLS, 40)
    assert counts["in the middle of a checkpoint"] >= max(1, KILLS // 5)
