"""Nonsense by the thousand: whatever a user or a file says, the answer is a result or one line.

    python -m tests.reliability.fuzz --inputs 20000

Nothing may hang, end in a traceback, run code, write outside the folder at hand, or take more than
MEMORY more than was taken before. What fails is printed with the seed that repeats it.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image

from fluxsmith import Pipeline, render
from fluxsmith import checkpoint as checkpoints
from fluxsmith.cli import main
from fluxsmith.config import RunConfig, read_config, show
from fluxsmith.config.reading import all_keys
from fluxsmith.data import load
from fluxsmith.data.mnist import read_idx
from fluxsmith.data.pictures import decode
from fluxsmith.data.records import PictureError
from fluxsmith.digest import Digesting
from fluxsmith.errors import UserError
from fluxsmith.tensorfile import read_tensors, write_tensors
from fluxsmith.training.run import train
from tests.helpers import same

MEMORY = 2**30  # bytes
SECONDS = 20  # for one input
CONFIG = """
data: {source: digits, image_size: 16, resize: stretch}
text: {width: 64, hidden_size: 64}
model: {patch_size: 4, hidden_size: 64, num_heads: 1, depth: 1, depth_single_blocks: 1}
train: {steps: 1, batch_size: 4, warmup_steps: 2, log_every: 1, learning_rate: 0.01}
sample: {steps: 2, num_samples: 2}
evaluate: {every: 0}
"""
KEYS = [*all_keys(RunConfig), *RunConfig.model_fields]


class Unexpected(Exception):  # noqa: N818 (it is caught by name only)
    """An outcome that is neither a result nor one line."""


PLANES = (
    (0, 31), (32, 126), (127, 0x2FF), (0x590, 0x6FF), (0x4E00, 0x4EFF), (0xD800, 0xDFFF),
    (0xFFF0, 0xFFFF), (0x1F300, 0x1F6FF), (0xE0000, 0xE01EF), (0x10FF00, 0x10FFFF),
)  # fmt: skip


# --- what to try ----------------------------------------------------------------------------------


def text(draw: random.Random, most: int = 60) -> str:
    """Any Unicode: control characters, unpaired surrogates, right-to-left, the rarest planes."""
    some = draw.sample(PLANES, draw.randint(1, 3))
    return "".join(chr(draw.randint(*draw.choice(some))) for _ in range(draw.randint(0, most)))


def value(draw: random.Random) -> str:
    """A value as one might write it in YAML, sensible or not."""
    return draw.choice([
        lambda: str(draw.choice((0, 1, -1, 2, 3, 16, 64, 10**6, 2**31, 2**63, 10**30, -(10**30)))),
        lambda: repr(draw.choice((0.0, -0.0, 1e-300, 1e300, 0.5, 1.0, 2.5))),
        lambda: draw.choice((".nan", ".inf", "-.inf", "1e999", "0x7f", "1_000", "190:20:30")),
        lambda: "9" * draw.choice((100, 4000, 5000, 20000)),
        lambda: draw.choice(("true", "no", "null", "~", "", "=", "<<", "!!binary aGk=", "? a")),
        lambda: draw.choice(("2001-01-01", "2001-99-99", "2001-12-14t21:59:43.10-05:00")),
        lambda: "[" * draw.choice((1, 5, 2000)) + "1" + "]" * draw.choice((1, 5, 2000)),
        lambda: "{a: " * draw.choice((1, 50)) + "1" + "}" * draw.choice((1, 50)),
        lambda: draw.choice(("../../x", "/etc/passwd", "~", "a/b", "CON", "x" * 300, "a\\0b")),
        lambda: draw.choice(("digits", "mnist", "cpu", "cuda:99", "euler", "bytes", "pixel")),
        lambda: "!!python/object/apply:os.mknod [executed]",
        lambda: "!!python/name:os.system",
        lambda: "&a [*a]",
        lambda: json.dumps(text(draw)),
        lambda: text(draw, 12),
    ])()  # fmt: skip


def bomb(draw: random.Random) -> str:
    """Anchors that explode: lists of lists, or mappings merged into mappings."""
    depth = draw.randint(5, 40)
    if draw.random() < 0.5:
        lines = ["a0: &a0 [x, x]"]
        lines += [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, depth)]
    else:
        lines = ["a0: &a0 {x: 1}"]
        lines += [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, depth)]
    return "\n".join([*lines, f"train: {{steps: *a{depth - 1}}}", "data: {source: digits}"])


def document(draw: random.Random) -> str:
    """A config, mangled."""
    kind = draw.randrange(6)
    if kind == 0:
        return bomb(draw)
    if kind == 1:
        return text(draw, 400)
    if kind == 2:
        return value(draw)
    lines = CONFIG.strip().splitlines()
    for _ in range(draw.randint(1, 3)):
        line = draw.randrange(len(lines))
        what = draw.randrange(4)
        if what == 0:
            lines.insert(line, f"{draw.choice(KEYS).rpartition('.')[2]}: {value(draw)}")
        elif what == 1:
            lines[line] = f"{lines[line].partition(':')[0]}: {value(draw)}"
        elif what == 2:
            at = draw.randrange(len(lines[line]) + 1)
            lines[line] = lines[line][:at] + text(draw, 3) + lines[line][at:]
        else:
            lines[line] = lines[line].replace("1", value(draw), 1)
    return "\n".join(lines)


def mangled(draw: random.Random, data: bytes) -> bytes:
    """Bytes changed, cut out, doubled, or made up."""
    spoilt = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at, length = draw.randrange(len(spoilt) + 1), draw.choice((1, 1, 2, 4, 8, 100, 5000))
        what = draw.randrange(5)
        if what == 0 and at < len(spoilt):
            spoilt[at] ^= 1 << draw.randrange(8)
        elif what == 1:
            del spoilt[at : at + length]
        elif what == 2:
            spoilt[at:at] = spoilt[at : at + length]
        elif what == 3:
            spoilt[at : at + length] = draw.randbytes(length)
        else:
            spoilt[at : at + 4] = draw.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
    return bytes(spoilt)


# --- what it is tried on --------------------------------------------------------------------------


class Targets:
    """Each method tries one input in the folder at hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "toy.yaml").write_text(CONFIG, encoding="utf-8")
        with quiet():
            train(read_config(folder / "toy.yaml"))
        self.checkpoint = checkpoints.newest(folder / "output" / "toy")
        self.whole = self.checkpoint.read_bytes()
        self.pipeline = Pipeline.from_checkpoint(self.checkpoint, device="cpu")
        write_tensors(folder / "t.safetensors", {"a": torch.ones(3, 4), "b": torch.ones(2)}, {})
        self.tensors = (folder / "t.safetensors").read_bytes()
        header = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in (5, 4, 4))
        self.idx = header + bytes(range(80))

    def config_file(self, draw: random.Random) -> None:
        file = self.folder / "c.yaml"
        mangle = draw.random() < 0.1
        data = document(draw).encode("utf-8", "surrogatepass")
        file.write_bytes(mangled(draw, data) if mangle else data)
        show(read_config(file))

    def overrides(self, draw: random.Random) -> None:
        given = []
        for _ in range(draw.randint(1, 3)):
            key = (
                draw.choice(KEYS)
                if draw.random() < 0.8
                else draw.choice((text(draw, 8), ".", "a."))
            )
            given.append(f"{key}={value(draw)}" if draw.random() < 0.95 else text(draw))
        show(read_config(self.folder / "toy.yaml", given))

    def idx_file(self, draw: random.Random) -> None:
        file = self.folder / draw.choice(("i-idx", "i.gz"))
        data = mangled(draw, self.idx)
        if file.suffix == ".gz":
            what = draw.randrange(4)
            bomb_ = self.idx[:4] + b"\xff" * 12 + bytes(draw.choice((10**5, 10**8)))
            data = gzip.compress(bomb_ if what == 0 else data, 1)
            data = mangled(draw, data) if what == 1 else data
        file.write_bytes(data)
        read_idx(file, draw.choice((1, 3)))

    def checkpoint_bytes(self, draw: random.Random) -> None:
        file = self.folder / "c.pt"
        file.write_bytes(mangled(draw, self.whole))
        found = checkpoints.load(file)
        # Without its comment, where the digest is, a file may still hold all of its records.
        if not same(found, checkpoints.load(self.checkpoint)):
            raise Unexpected("a damaged checkpoint was taken for a good one")

    def signed_checkpoint(self, draw: random.Random) -> None:
        """Damage that the digest vouches for, so that what lies behind it sees it."""
        file = self.folder / "s.pt"
        plain = self.whole[:-73] + b"\0\0"
        plain = mangled(draw, plain) if draw.random() < 0.5 else repacked(draw, plain)
        with open(file, "wb") as stream:
            signing = Digesting(stream, lambda: False)
            signing.write(memoryview(plain))
            with contextlib.suppress(AssertionError):
                signing.sign()
        Pipeline.from_checkpoint(file, device="cpu")

    def checkpoint_contents(self, draw: random.Random) -> None:
        """Well-formed files of nonsense."""
        contents = checkpoints.load(self.checkpoint)
        contents["metadata"] = dict(contents["metadata"])
        key = draw.choice(sorted(contents))
        if isinstance(contents[key], dict) and contents[key] and draw.random() < 0.7:
            inner = draw.choice(sorted(map(str, contents[key])))
            contents[key] = contents[key] | {inner: nonsense(draw)}
        else:
            contents[key] = nonsense(draw)
        file = self.folder / "w.pt"
        torch.save(contents, file)
        if draw.random() < 0.5:
            Pipeline.from_checkpoint(file, device="cpu")
        else:
            with quiet():
                train(read_config(self.folder / "toy.yaml", ["output_dir=new"]), resume=str(file))

    def safetensors_file(self, draw: random.Random) -> None:
        file = self.folder / draw.choice(("m.safetensors", "m.safetensors.index.json"))
        if file.suffix == ".json":
            index = json.dumps({"weight_map": {"a": draw.choice(("t.safetensors", "../../x"))}})
            file.write_bytes(mangled(draw, index.encode()))
        else:
            file.write_bytes(mangled(draw, self.tensors))
        for tensor in read_tensors(file).values():
            tensor.sum()

    def picture(self, draw: random.Random) -> None:
        """Damaged pictures, and small files that claim to be huge."""
        mode = draw.choice(("L", "RGB", "RGBA", "P", "I;16", "1", "LA"))
        kind = draw.choice(("PNG", "PNG", "GIF", "TIFF", "JPEG", "BMP", "WEBP", "JPEG2000"))
        stream = io.BytesIO()
        with contextlib.suppress(OSError, ValueError):  # not every kind has every mode
            Image.new(mode, (draw.randint(1, 40), draw.randint(1, 40))).save(stream, kind)
        data = stream.getvalue()
        if kind == "PNG" and draw.random() < 0.3:
            claimed = draw.choice((9000, 13000, 2**20, 2**31 - 1)).to_bytes(4, "big")
            header = data[12:16] + claimed * 2 + data[24:29]
            data = data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]
        if draw.random() < 0.8:
            data = mangled(draw, data)
        resize = draw.choice(("pad", "stretch", "center-crop"))
        with contextlib.suppress(PictureError):
            decode(data, draw.choice((8, 64)), draw.choice((1, 3)), resize, 0.5)

    def caption_file(self, draw: random.Random) -> None:
        """A folder of pictures, whose captions are nonsense."""
        data = self.folder / "data"
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir()
        for i in range(3):
            Image.new("L", (8, 8), i).save(data / f"{i}.png")
        rows = [
            {"file_name": draw.choice(("0.png", "../../x.png", "/etc/passwd", "", text(draw, 5))),
             draw.choice(("text", "caption", text(draw, 4))): draw.choice((text(draw), 3, None))}
            for _ in range(3)
        ]  # fmt: skip
        kind = draw.randrange(3)
        if kind == 0:
            lines = "\n".join(json.dumps(row) for row in rows).encode()
            name = "metadata.jsonl"
        elif kind == 1:
            lines = "\n".join(
                ["file_name,text", *(f"{i}.png,{text(draw)}" for i in range(3))]
            ).encode("utf-8", "surrogatepass")
            name = "metadata.csv"
        else:
            lines, name = text(draw, 300).encode("utf-8", "surrogatepass"), "0.txt"
        (data / name).write_bytes(mangled(draw, lines) if draw.random() < 0.5 else lines)
        settings = ["data.source=folder", f"data.path={data}", "data.in_memory=true"]
        with quiet():
            load(read_config(self.folder / "toy.yaml", settings).data.settings(), "train")

    def prompt(self, draw: random.Random) -> None:
        most = draw.choice((10, 100, 100, 5000))
        prompts = [text(draw, most) for _ in range(draw.randint(1, 3))]
        if draw.random() < 0.05:
            prompts.append(draw.choice(("x", "é ", " ", "\0")) * 10**6)
        images = self.pipeline.generate(prompts, steps=1, guidance=1)
        render.grid(images.add(1).mul(127).byte(), prompts)

    def command_line(self, draw: random.Random) -> None:
        words = [
            "train", "sample", "evaluate", "compare", "config", "show", "schema", "toy.yaml",
            "--prompt", "--num-samples", "--steps", "--guidance", "--solver", "--seed", "--out",
            "--weights", "--device", "--config", "--resume", "--fork", "--overwrite", "--json",
            "--filmstrip", "--help", "--", "-", "=", "auto", "euler", "2", "-1", "0", "1e9", "nan",
            "9" * 30, "output/toy", "out", "/proc/no/x", "../" * 3, "x" * 5000, "\udcff",
        ]  # fmt: skip
        first = draw.choice((["sample", str(self.checkpoint)], ["train", "toy.yaml"], []))
        given = [*first, *(draw.choice(words) for _ in range(draw.randint(0, 4)))]
        given += [text(draw, 8).replace("\0", "")] * (draw.random() < 0.3)
        given += [f"{draw.choice(KEYS)}={value(draw)}"] * (first[:1] == ["train"])
        if "evaluate" in given or "compare" in given:
            given += ["--num-samples", "2", "--steps", "1"]
        if first[:1] == ["train"]:
            given += ["train.steps=1", "output_dir=out/cli", "train.batch_size=4", "sample.steps=1"]
        with quiet() as (out, errors):
            try:
                main(given)
            except SystemExit as exit_:
                check_exit(int(exit_.code or 0), out.getvalue(), errors.getvalue())


def nonsense(draw: random.Random) -> object:
    """Plain data where other plain data belongs."""
    shared: object = [1]
    for _ in range(40):
        shared = [shared, shared]
    return draw.choice((
        None, 0, -1, 10**40, 1.5, float("nan"), "x", b"x", [], {}, (), {"a": {"b": 1}}, shared,
        torch.zeros(0), torch.zeros(2, 2), torch.ones(1).expand(2**40), torch.tensor(float("nan")),
        {"x": torch.zeros(1)}, {0: 1}, "../../x",
    ))  # fmt: skip


def repacked(draw: random.Random, plain: bytes) -> bytes:
    """The archive with one record mangled and everything around it in order."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(plain)) as source, zipfile.ZipFile(out, "w") as target:
        names = [record.filename for record in source.infolist()]
        pickled = next(name for name in names if name.endswith("data.pkl"))
        spoilt = pickled if draw.random() < 0.7 else draw.choice(names)
        for name in names:
            data = source.read(name)
            target.writestr(name, mangled(draw, data) if name == spoilt else data)
    return out.getvalue()


# --- how it is judged -----------------------------------------------------------------------------


@contextlib.contextmanager
def quiet() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        yield out, errors


def check_exit(code: int, out: str, errors: str) -> None:
    if code not in (0, 2):
        raise Unexpected(f"exit code {code}: {errors[:300]}")
    said = errors.startswith("error: ") or "\nerror: " in errors or "Usage: " in out + errors
    if code == 2 and not said:
        raise Unexpected(f"no line that says why: {errors[:300]}")
    if "Traceback" in errors:
        raise Unexpected(errors[-2000:])


@contextlib.contextmanager
def in_time(seconds: int) -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise Unexpected(f"it took over {seconds} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def memory() -> int:
    """The most that this process has taken so far, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def try_one(target: Callable[[random.Random], None], draw: random.Random) -> str | None:
    """What is wrong with the outcome, if anything is."""
    try:
        with in_time(SECONDS):
            target(draw)
    except UserError as error:
        if not error.args or not all(str(message).strip() for message in error.args):
            return "an empty message"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return None


def fuzz(inputs: int, seed: int, parent: Path, only: str | None = None) -> dict[str, object]:
    """Tries so many inputs, spread over the targets, and counts them."""
    folder = parent / "work"
    folder.mkdir()
    os.chdir(folder)
    targets = Targets(folder)
    names = [name for name in vars(Targets) if not name.startswith("_") and only in (None, name)]
    tried: Counter[str] = Counter()
    failures: list[str] = []
    before = memory()
    for number in range(inputs):
        name = names[number % len(names)]
        problem = try_one(getattr(targets, name), random.Random(f"{seed}/{number}"))
        tried[name] += 1
        if problem is None and (folder / "executed").exists():
            problem = "it ran code"
        if problem is None and [path.name for path in parent.iterdir()] != ["work"]:
            problem = "it wrote outside its folder"
        if problem is None and memory() - before > MEMORY:
            problem = f"it took {(memory() - before) / 2**20:.0f} MiB more"
            before = memory()
        if problem:
            failures.append(f"{name} --seed {seed} --input {number}: {problem}")
    more = (memory() - before) / 2**20
    return {"tried": dict(tried), "failures": failures, "more memory, MiB": round(more)}


def command_line() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one target")
    parser.add_argument("--input", type=int, help="this one alone, with its traceback")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, here = time.monotonic(), Path.cwd()
    with tempfile.TemporaryDirectory() as parent:
        if options.input is not None:
            folder = Path(parent)
            os.chdir(folder)
            getattr(Targets(folder), options.only)(random.Random(f"{options.seed}/{options.input}"))
        found = fuzz(options.inputs, options.seed, Path(parent), options.only)
        os.chdir(here)
    total = sum(found["tried"].values())
    print(json.dumps({**found, "inputs": total, "seconds": round(time.monotonic() - began, 1)}))
    sys.exit(1 if found["failures"] else 0)


if __name__ == "__main__":
    command_line()
