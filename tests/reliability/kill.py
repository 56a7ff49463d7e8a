"""Kills runs with `kill -9` at random, again and again, lets each end, and compares every byte that
is left with a run that was left alone.

    python -m tests.reliability.kill --kills 48

Three kinds of run take turns: pictures in memory, a stream of tar shards that threads decode, and
pretrained encoders whose embeddings of a stream's captions are kept on disk. Each life is forked
from this process, which has everything imported: so a life takes a second.
"""

import argparse
import contextlib
import io
import json
import os
import random
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from fluxsmith import checkpoint as checkpoints
from fluxsmith.cli import main
from fluxsmith.text.shards import Shard
from fluxsmith.training.metrics import read_metrics

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
STREAM = {"source": "webdataset", "path": "../data", "workers": 2, "shuffle_buffer": 7}
PICTURES = 58  # so that blocks, shards and epochs end where batches don't
MOMENTS = ("writing", "training", "renaming", "writing", "starting")  # to kill at, in turn


@dataclass(frozen=True)
class Kind:
    """What is killed: settings beside CONFIG's, and what has to lie beside the runs' folders."""

    sections: dict[str, dict[str, object]]
    prepare: Callable[[Path], None]

    def write(self, folder: Path, steps: int) -> None:
        """The config of a run in this folder."""
        config = yaml.safe_load(CONFIG)
        config["train"]["steps"] = steps
        for name, section in self.sections.items():
            own = {"image_size": 8} if name == "data" else {}
            config[name] = own | section
        (folder / "toy.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def make_shards(parent: Path) -> None:
    """Tar files of small pictures, each with a caption of its own length."""
    from PIL import Image

    draw = random.Random(0)
    (parent / "data").mkdir()
    for shard in range(5):
        with tarfile.open(parent / "data" / f"{shard}.tar", "w") as tar:
            for i in range(shard, PICTURES, 5):
                picture = io.BytesIO()
                Image.frombytes("L", (8, 8), draw.randbytes(64)).save(picture, "PNG")
                caption = " ".join(["a photo of", *draw.choices(["three", "red", "cats"], k=i % 9)])
                for ending, data in (
                    ("png", picture.getvalue()),
                    ("txt", f"{caption} {i}".encode()),
                ):
                    member = tarfile.TarInfo(f"{i:03d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def make_encoders(parent: Path) -> None:
    from tests.tiny_encoders import save_clip, save_t5

    make_shards(parent)
    save_clip(parent / "clip")
    save_t5(parent / "t5")


KINDS = {
    "memory": Kind({}, lambda parent: None),
    "stream": Kind({"data": STREAM}, make_shards),
    "text": Kind(
        {
            "data": STREAM,
            "text": {"encoder": "clip_t5", "clip": "../clip", "t5": "../t5", "t5_tokens": 24,
                     "cache": "cache"},
        },
        make_encoders,
    ),
}  # fmt: skip


def start(folder: Path, background: bool) -> int:
    """A life of the run in the folder; the process it is."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        override = f"train.background_save={str(background).lower()}"
        main(["train", "toy.yaml", override, "--resume", "auto"])
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def ended(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def writing(run: Path) -> set[tuple[str, int]]:
    """The files, by name and inode, that checkpoints are being written to, or were when a life
    ended."""
    try:
        return {
            (entry.name, entry.inode())
            for entry in os.scandir(run)
            if entry.name.endswith(".pt.tmp")
        }
    except FileNotFoundError:
        return set()


def kill(pid: int, run: Path, moment: str, most: int, draw: random.Random) -> bool:
    """Kills the life at such a moment, in or after one of its first so many checkpoints; whether it
    was not over before."""
    if moment == "starting":
        pause = draw.uniform(0, 1)
    else:
        before = writing(run)
        seen: set[tuple[str, int]] = set()
        writes = draw.randint(1, most)  # of this life, before it ends
        while len(seen) < writes:
            if ended(pid):
                return False
            seen |= writing(run) - before
            time.sleep(0.0005)
        pause = {"writing": 0.001, "renaming": 0.02, "training": 0.5}[moment] * draw.random()
    time.sleep(pause)
    if ended(pid):
        return False
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def in_child(work: Callable[[], object]) -> None:
    """Does it in a process of its own: what it starts, such as threads, would not outlive a fork
    in good order."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        sys.exit("the data could not be made")


def new_folder(parent: Path, name: str, kind: Kind, steps: int) -> Path:
    folder = parent / name
    folder.mkdir()
    kind.write(folder, steps)
    return folder


def let_end(folder: Path, background: bool) -> None:
    _, status = os.waitpid(start(folder, background), 0)
    if status != 0:
        sys.exit(f"exit status {status} in {folder}:\n{(folder / 'log.txt').read_text()}")


def records(run: Path) -> list[dict[str, float]]:
    return [
        {key: value for key, value in record.items() if key != "images_per_second"}
        for record in read_metrics(run / "metrics.jsonl")
    ]


def board(run: Path) -> list[tuple[int, str]]:
    """Every (step, tag) that TensorBoard's files hold, as they stand there."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return sorted(
        (event.step, value.tag)
        for file in (run / "tensorboard").iterdir()
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    )


def differences(one: Path, two: Path) -> tuple[int, list[str]]:
    """The bytes compared, and what differs between two runs' folders."""
    wrong, compared = [], 0
    names = [
        sorted(p.name for p in run.iterdir() if p.suffix in (".pt", ".png", ".txt", ".yaml"))
        for run in (one, two)
    ]
    if names[0] != names[1]:
        wrong.append(f"files: {names[0]} and {names[1]}")
    for name in names[0]:
        if name in names[1] and name not in ("config.yaml", "loss.png"):
            bytes_ = (one / name).read_bytes()
            compared += len(bytes_)
            if bytes_ != (two / name).read_bytes():
                wrong.append(name)
    if records(one) != records(two):
        wrong.append("metrics.jsonl")
    if board(one) != board(two):
        wrong.append("tensorboard")
    return compared, wrong


def embeddings(folder: Path) -> dict[str, bytes]:
    """What a run's cache holds, by prompt; a file that is not whole raises an error."""
    found = {}
    for path in (folder / "cache").glob("*/*.safetensors"):
        shard = Shard(path)
        for row, prompt in enumerate(shard.prompts):
            encoded = shard.read(row)
            found[prompt] = encoded.tokens.numpy().tobytes() + encoded.pooled.numpy().tobytes()
    return found


def check_whole(folder: Path) -> int:
    """The checkpoints under a final name, each of which must be whole, as must be each file of
    embeddings."""
    found = checkpoints.find(folder / "run")
    for _, path in found:
        checkpoints.load(path)
    embeddings(folder)
    return len(found)


def rounds_of(
    name: str, kills: int, steps: int, background: bool, parent: Path, draw: random.Random
) -> tuple[Counter[str], list[str]]:
    """Kills runs of one kind so many times; what was counted, and what differs."""
    kind, counts, wrong = KINDS[name], Counter[str](), list[str]()
    in_child(lambda: kind.prepare(parent))
    alone = new_folder(parent, "alone", kind, steps)
    let_end(alone, background)
    while counts["kills"] < kills:
        folder = new_folder(parent, f"round-{counts['rounds']}", kind, steps)
        over = False
        while counts["kills"] < kills and not over:
            moment = MOMENTS[counts["kills"] % len(MOMENTS)]
            before = writing(folder / "run")
            pid, most = start(folder, background), max(1, steps // 20)
            over = not kill(pid, folder / "run", moment, most, draw)
            if not over:
                counts["kills"] += 1
                cut_short = writing(folder / "run") - before
                counts["in the middle of a checkpoint"] += bool(cut_short)
                counts["whole checkpoints found"] += check_whole(folder)
        let_end(folder, background)
        compared, differing = differences(alone / "run", folder / "run")
        there, here = embeddings(alone), embeddings(folder)
        if here != there:
            differing.append("embeddings")
        counts["rounds"] += 1
        counts["bytes compared"] += compared + sum(map(len, here.values()))
        wrong += [f"{name}, {folder.name}: {what}" for what in differing]
    return counts, wrong


def warm_up() -> None:
    """Imports what a life needs, so that it need not."""
    import webdataset.gopen
    import webdataset.shardlists
    import webdataset.tariterators  # noqa: F401
    from transformers import AutoConfig, AutoTokenizer, CLIPTextModel, T5EncoderModel  # noqa: F401

    here = Path.cwd()
    with tempfile.TemporaryDirectory() as parent, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(new_folder(Path(parent), "warm", KINDS["memory"], 1))
        with contextlib.suppress(SystemExit):
            main(["train", "toy.yaml", "train.background_save=false"])  # and so without threads
        os.chdir(here)


def test(
    kinds: Sequence[str], kills: int, steps: int, seed: int, background: bool
) -> dict[str, object]:
    """The kills are shared out among the kinds."""
    warm_up()
    counts, wrong, killed = Counter[str](), list[str](), dict[str, int]()
    for number, name in enumerate(kinds):
        share = (kills + len(kinds) - 1 - number) // len(kinds)
        with tempfile.TemporaryDirectory() as parent:
            draw = random.Random(f"{seed}/{name}")
            found = rounds_of(name, share, steps, background, Path(parent), draw)
        counts += found[0]
        killed[name] = found[0]["kills"]
        wrong += found[1]
    return {**counts, "kinds": killed, "differing": wrong}


def command_line() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=48)
    parser.add_argument("--steps", type=int, default=120, help="of a run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--foreground", action="store_true", help="train.background_save=false")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    found = test(options.kinds, options.kills, options.steps, options.seed, not options.foreground)
    print(json.dumps({**found, "seconds": round(time.monotonic() - began, 1)}))
    sys.exit(1 if found["differing"] else 0)


if __name__ == "__main__":
    command_line()
