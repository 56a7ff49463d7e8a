"""What the fuzzer tries: text, values, configs, JSON and bytes that nobody should have written."""

import io
import json
import os
import random
import tarfile
import zipfile
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
    "{0..9999999999}.tar", "{a,b}" * 40, "{1..", "x{0..3}{", "file://nowhere.tar", "s3://`id`",
)  # fmt: skip


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
        lambda: json.dumps(draw.choice(PATHS)),
        lambda: draw.choice(("digits", "mnist", "cpu", "cuda:99", "euler", "bytes", "pixel",
                             "webdataset", "folder", "hf", "clip_t5", "flux")),
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


def json_text(draw: random.Random, sensible: object) -> str:
    """JSON that is nearly what belongs there, or far from it."""
    deep = draw.choice((50, 900, 200_000))
    return draw.choice([
        lambda: json.dumps(sensible),
        lambda: json.dumps(json_value(draw, sensible)),
        lambda: json.dumps(json_value(draw, sensible)),
        lambda: "[" * deep + "]" * deep,
        lambda: '{"a":' * deep + "1" + "}" * deep,
        lambda: draw.choice(("", "null", "NaN", "[]", "{}", '"x"', "1e999", "9" * 5000, "\\ud800")),
        lambda: text(draw, 100),
    ])()  # fmt: skip


def json_value(draw: random.Random, sensible: object) -> object:
    """Plain data with one part of it, at any depth, replaced."""
    if isinstance(sensible, dict) and sensible and draw.random() < 0.8:
        key = draw.choice(sorted(sensible))
        if draw.random() < 0.15:
            return {name: part for name, part in sensible.items() if name != key}
        return {**sensible, key: json_value(draw, sensible[key])}
    if isinstance(sensible, list) and sensible and draw.random() < 0.7:
        at = draw.randrange(len(sensible))
        return [*sensible[:at], json_value(draw, sensible[at]), *sensible[at + 1 :]]
    return draw.choice((
        None, True, 0, -1, 10**25, 2**63, 0.5, float("nan"), float("inf"), "", text(draw, 20),
        "\ud800", [], [[]], {}, {"a": [1, {"b": None}]}, [None] * 3, draw.choice(PATHS),
    ))  # fmt: skip


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


def often_mangled(draw: random.Random, data: bytes, share: float = 0.5) -> bytes:
    return mangled(draw, data) if draw.random() < share else data


class Planted:
    """Makes a file where it is unpickled as pickles usually are."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mknod, ("executed",)


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
    """Plain data where other plain data belongs, and now and then what is more than that."""
    shared: object = [1]
    for _ in range(40):
        shared = [shared, shared]
    return draw.choice((
        None, 0, -1, 10**40, 1.5, float("nan"), "x", b"x", [], {}, (), {"a": {"b": 1}}, shared,
        tensor(draw), tensor(draw), {"x": torch.zeros(1)}, {0: 1}, "../../x", text(draw), Planted(),
    ))  # fmt: skip


def repacked(draw: random.Random, plain: bytes) -> bytes:
    """A zip archive with one record mangled and everything around it in order."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(plain)) as source, zipfile.ZipFile(out, "w") as target:
        names = [record.filename for record in source.infolist()]
        pickled = next(name for name in names if name.endswith("data.pkl"))
        spoilt = pickled if draw.random() < 0.7 else draw.choice(names)
        for name in names:
            data = source.read(name)
            target.writestr(name, mangled(draw, data) if name == spoilt else data)
    return out.getvalue()


def tar(draw: random.Random, picture: bytes) -> bytes:
    """A shard whose members are of any name and kind; some of their sizes are lies."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=draw.choice((0, 1, 2))) as shard:
        for i in range(draw.randint(0, 4)):
            stem = draw.choice(
                (str(i), "a", "../../x", "/etc/x", "__m__", "/" * 300, text(draw, 9))
            )
            caption = json_text(draw, {"caption": "seven"})
            for ending, data in (
                (draw.choice(("png", "PNG", "jpg", "webp", "bin")), often_mangled(draw, picture)),
                ("txt", text(draw).encode("utf-8", "surrogatepass")),
                ("json", caption.encode("utf-8", "surrogatepass")),
            ):
                if draw.random() < 0.7:
                    _add(draw, shard, f"{stem}.{ending}", data)
    return stream.getvalue()


def _add(draw: random.Random, shard: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name.encode("utf-8", "replace").decode().replace("\0", ""))
    member.size = len(data)
    if draw.random() < 0.1:
        member.type = draw.choice((tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"S", b"?"))
        member.linkname = "../../x"
    if draw.random() < 0.1:
        member.pax_headers = {
            draw.choice(("size", "path", "GNU.sparse.realsize", "GNU.sparse.map", "x")):
            draw.choice(("-1", "99999999999999", "x", "../../x", "0,9999999999"))
        }  # fmt: skip
    try:
        shard.addfile(member, io.BytesIO(data))
    except ValueError:  # a name that this format can't hold
        return
    if draw.random() < 0.1:  # a header alone, which claims that more follows
        lie = tarfile.TarInfo("lie.png")
        lie.size = draw.choice((0, 10**6, 2**27, 2**33 - 1))
        lie.type = draw.choice((b"0", b"L", b"x", b"g", b"S"))
        shard.fileobj.write(lie.tobuf())
        shard.offset += len(lie.tobuf())
