"""What the fuzz tests try: text, values, configs, JSON, bytes and tensors that belong nowhere."""

import io
import json
import os
import random
import tarfile
from collections.abc import Callable

import torch

from fluxsmith.config import RunConfig
from fluxsmith.config.reading import all_keys

CONFIG = """
data: {source: digits, image_size: 8}
text: {width: 32, hidden_size: 64, depth: 0}
model: {patch_size: 4, hidden_size: 32, num_heads: 1, depth: 1, depth_single_blocks: 1,
  axes_dim: [8, 12, 12]}
train: {steps: 1, batch_size: 4, warmup_steps: 2, log_every: 1, learning_rate: 0.01}
sample: {steps: 2, num_samples: 2}
evaluate: {every: 0}
"""
KEYS = [*all_keys(RunConfig), *RunConfig.model_fields]
PLANES = (
    (0, 31), (32, 126), (127, 0x2FF), (0x590, 0x6FF), (0x4E00, 0x4EFF), (0xD800, 0xDFFF),
    (0xFFF0, 0xFFFF), (0x1F300, 0x1F6FF), (0xE0000, 0xE01EF), (0x10FF00, 0x10FFFF),
)  # fmt: skip
PATHS = (
    "../../x", "/etc/passwd", "~", "a/b", "CON", "x" * 300, "a\\0b", "/dev/zero", "/dev/tty", "",
    "/proc/self/mem", "pipe:touch executed", "pipe://touch executed;", "http://'$(touch executed)'",
    "{1..", "x{0..3}{", "file://nowhere.tar", "s3://`id`",
)  # fmt: skip


class Planted:
    """Makes a file when it is unpickled by a reader that runs what a pickle says."""

    def __init__(self, marker: object = "executed") -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mknod, (self.marker,)


def text(draw: random.Random, most: int = 60) -> str:
    """Any Unicode: control characters, unpaired surrogates, right-to-left, the rarest planes."""
    some = draw.sample(PLANES, draw.randint(1, 3))
    return "".join(chr(draw.randint(*draw.choice(some))) for _ in range(draw.randint(0, most)))


def value(draw: random.Random) -> str:
    """A value as one might write it in YAML, sensible or not."""
    return draw.choice((
        str(draw.choice((0, 1, -1, 2, 3, 16, 2**31, 2**63, -(10**30), 0.5, 1e-300, 1e300))),
        draw.choice((".nan", "-.inf", "1e999", "0x7f", "190:20:30", "2001-99-99", "9" * 20000)),
        draw.choice(("true", "no", "null", "~", "", "=", "<<", "!!binary aGk=", "? a", "&a [*a]")),
        "[" * draw.choice((1, 5, 2000)) + "1" + "]" * draw.choice((1, 5, 2000)),
        json.dumps(draw.choice(PATHS)),
        draw.choice(("digits", "mnist", "cpu", "cuda:99", "euler", "bytes", "webdataset", "flux")),
        "!!python/object/apply:os.mknod [executed]",
        json.dumps(text(draw)),
        text(draw, 12),
    ))  # fmt: skip


def json_text(draw: random.Random, sensible: dict[str, object]) -> str:
    """JSON that is nearly what belongs there, or far from it."""
    strange = draw.choice((
        None, -1, 10**25, float("nan"), "", text(draw, 20), "\ud800", [[]], {"a": [1, {"b": None}]},
        draw.choice(PATHS),
    ))  # fmt: skip
    nearly = json.dumps({**sensible, draw.choice(sorted(sensible)): strange})
    return draw.choice((nearly, nearly, json.dumps(strange), "[" * 50 + "]" * 50, text(draw, 100)))


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


def often_mangled(draw: random.Random, data: bytes | str, share: float = 0.5) -> bytes:
    """The data, or text as UTF-8, in this share of cases mangled."""
    plain = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return mangled(draw, plain) if draw.random() < share else plain


def tensor(draw: random.Random) -> torch.Tensor:
    """One of an unlikely shape, kind or content."""
    return draw.choice([
        lambda: torch.zeros(0), lambda: torch.zeros(2, 2), lambda: torch.tensor(float("nan")),
        lambda: torch.ones(1).expand(2**40), lambda: torch.full((3,), float("inf")),
        lambda: torch.zeros(3, 0, 2), lambda: torch.tensor([True, False]),
        lambda: torch.tensor([2**62, -1]), lambda: torch.zeros(4, dtype=torch.complex64),
        lambda: torch.zeros(2, 3, dtype=torch.bfloat16), lambda: torch.tensor(3),
    ])()  # fmt: skip


def nonsense(draw: random.Random) -> object:
    """Plain data where other plain data belongs; sometimes a tensor or code."""
    return draw.choice((
        None, 0, -1, 10**40, 1.5, float("nan"), "x", b"x", [], {}, (), {"a": {"b": 1}},
        tensor(draw), tensor(draw), {"x": torch.zeros(1)}, {0: 1}, "../../x", text(draw), Planted(),
    ))  # fmt: skip


def tar(draw: random.Random, picture: bytes) -> bytes:
    """A shard whose members are of any name and kind, and whose headers may lie."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=draw.choice((0, 1, 2))) as shard:
        for i in range(draw.randint(0, 4)):
            stem = draw.choice((str(i), "a", "../../x", "/etc/x", "__m__", "/" * 300, text(draw)))
            for ending, data in (
                (draw.choice(("png", "PNG", "jpg", "webp", "bin")), often_mangled(draw, picture)),
                ("txt", often_mangled(draw, text(draw))),
                ("json", often_mangled(draw, json_text(draw, {"caption": "seven"}))),
            ):
                member = tarfile.TarInfo(f"{stem}.{ending}".encode("utf-8", "replace").decode())
                member.name, member.size = member.name.replace("\0", ""), len(data)
                if draw.random() < 0.1:
                    member.type = draw.choice((tarfile.SYMTYPE, tarfile.FIFOTYPE, b"S", b"?"))
                    member.linkname = "../../x"
                if draw.random() < 0.1:
                    lie = draw.choice(("-1", "x", "../../x"))
                    member.pax_headers = {draw.choice(("size", "path")): lie}
                try:
                    shard.addfile(member, io.BytesIO(data))
                except ValueError:  # this format can't hold the name
                    continue
    return stream.getvalue()
