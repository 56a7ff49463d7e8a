"""What the fuzzer tries nonsense on: everything that reads what users or strangers wrote."""

import bz2
import contextlib
import gzip
import io
import lzma
import random
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

from fluxsmith import Pipeline, render
from fluxsmith import checkpoint as checkpoints
from fluxsmith.autoencoder.flux_files import read_autoencoder
from fluxsmith.cli import main
from fluxsmith.config import read_config, show
from fluxsmith.data import DataSettings, build_loader, load
from fluxsmith.data.decoding import decode_record
from fluxsmith.data.mnist import read_idx
from fluxsmith.data.pictures import decode
from fluxsmith.data.records import PictureError
from fluxsmith.data.webdataset import load as open_shards
from fluxsmith.digest import Digesting
from fluxsmith.errors import UserError
from fluxsmith.interop.exporting import export
from fluxsmith.interop.importing import import_model
from fluxsmith.tensorfile import read_tensors, write_tensors
from fluxsmith.text.cache import EmbeddingCache
from fluxsmith.text.identity import DigestBook, find_stored
from fluxsmith.text.padding import Encoded, assemble
from fluxsmith.training.metrics import Recorder
from fluxsmith.training.run import train
from tests.helpers import same
from tests.reliability.nonsense import (
    CONFIG,
    KEYS,
    PATHS,
    Planted,
    document,
    json_text,
    mangled,
    nonsense,
    often_mangled,
    repacked,
    tar,
    tensor,
    text,
    value,
)

ABOUT = {"encoder": "transformers", "padding": "masked", "parts": {}, "widths": [4, 3]}
PROMPTS = ("", "three", "a photo of seven", "x" * 50)
RECORD = {"step": 1, "loss": 0.5, "loss_q1": 0.5, "grad_norm": 1.0, "learning_rate": 0.1}
# Command lines: what belongs to a command, options with values that make sense, and what is added
# to keep an input short.
COMMANDS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "train": (["toy.yaml"], ["train.batch_size=2", "--resume=auto", "--resume=x.pt", "--overwrite",
        "--fork=output/toy", "train.deterministic=true", "data.flip=true"],
        ["train.steps=1", "output_dir=out/cli", "sample.steps=1"]),
    "sample": (["output/toy"], ["--prompt=7", "--num-samples=2", "--steps=auto", "--guidance=2",
        "--solver=heun", "--seed=3", "--height=16", "--width=16", "--batch-size=1", "--filmstrip",
        "--init-image=0.png", "--strength=0.5", "--mask=0.png", "--dtype=bfloat16", "--gif",
        "--offload=blocks", "--weights=model", "--config=toy.yaml", "--set=text.cache=memory",
        "--device=cpu"], ["--steps=1"]),
    "evaluate": (["output/toy"], ["--metrics=validation_loss", "--metrics=straightness",
        "--json=out.json", "--report=out.html", "--guidance=2", "--weights=model", "--seed=1"],
        ["--num-samples=2", "--steps=1", "--metrics=validation_loss"]),
    "compare": (["output/toy", "output/toy"], ["--guidance=1", "--seed=2"],
        ["--num-samples=2", "--steps=1", "x.pt"]),
    "data": (["toy.yaml"], ["--out=sheet.png", "data.image_size=16", "data.channels=3"], []),
    "encode": (["toy.yaml"], ["text.encoder=transformers", "text.pretrained=t5"], []),
    "import": (["bfl/m.safetensors", "out/i.pt"], ["--config=toy.yaml", "model.depth=1"], []),
    "export": (["output/toy", "out/e.safetensors"], ["--format=bfl", "--format=diffusers",
        "--dtype=float16", "--weights=model", "--scores=out.json"], ["--no-samples"]),
    "config": (["show", "toy.yaml"], ["seed=3", "schema"], []),
    "": ([], ["--help", "train", "sample", "--", "-", "="], []),
}  # fmt: skip
ODD = ("-1", "0", "1e9", "nan", "9" * 30, "x" * 5000, "\udcff", "", "all", "/proc/no/x", "--help")


class Unexpected(Exception):  # noqa: N818 (it is caught by name only)
    """An outcome that is neither a result nor one line."""


@contextlib.contextmanager
def quiet() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        yield out, errors


# How often targets are tried that take their time.
SHARES = {
    "command_line": 3, "checkpoint_contents": 3, "parquet_file": 4, "signed_checkpoint": 3,
}  # fmt: skip
MOST = 6  # the share of all others


class Targets:
    """Each public method tries one input in the folder at hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "toy.yaml").write_text(CONFIG, encoding="utf-8")
        with quiet():
            train(read_config(folder / "toy.yaml"))
        self.checkpoint = checkpoints.newest(folder / "output" / "toy")
        self.whole = self.checkpoint.read_bytes()
        self.pipeline = Pipeline.from_checkpoint(self.checkpoint, device="cpu")
        self.tensors = {"a": torch.ones(3, 4), "b": torch.ones(2)}
        write_tensors(folder / "t.safetensors", self.tensors, {})
        header = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in (5, 4, 4))
        self.idx = header + bytes(range(80))
        self.idx_bombs = [
            gzip.compress(self.idx[:4] + b"\xff" * 12) + n * gzip.compress(bytes(10**7))
            for n in (1, 10, 100)
        ]
        stream = io.BytesIO()
        Image.new("RGB", (8, 8), 100).save(stream, "PNG")
        self.png = stream.getvalue()
        (folder / "0.png").write_bytes(self.png)
        self.tar_bombs = list(_tar_bombs())
        cache = EmbeddingCache(folder / "cache", ABOUT)
        for prompt in PROMPTS:
            cache.put(prompt, _encoded(prompt))
        cache.flush()
        self.shard = next((folder / "cache").glob("*.safetensors")).read_bytes()
        with quiet():
            export(self.checkpoint, folder / "bfl" / "m.safetensors", "bfl", samples=False)
        self.exported = {path.name: path.read_bytes() for path in (folder / "bfl").iterdir()}
        self.autoencoder = _tiny_autoencoder()

    # --- what a user types ---

    def config_file(self, draw: random.Random) -> None:
        file = self.folder / "c.yaml"
        data = document(draw).encode("utf-8", "surrogatepass")
        file.write_bytes(often_mangled(draw, data, 0.1))
        show(read_config(file))

    def overrides(self, draw: random.Random) -> None:
        given = []
        for _ in range(draw.randint(1, 3)):
            known = draw.random() < 0.8
            key = draw.choice(KEYS) if known else draw.choice((text(draw, 8), ".", "a."))
            given.append(f"{key}={value(draw)}" if draw.random() < 0.95 else text(draw))
        show(read_config(self.folder / "toy.yaml", given))

    def prompt(self, draw: random.Random) -> None:
        most = draw.choice((10, 100, 100, 1000))
        prompts = [text(draw, most) for _ in range(draw.randint(1, 3))]
        if draw.random() < 0.05:
            prompts.append(draw.choice(("x", "é ", " ", "\0")) * 10**6)
        images = self.pipeline.generate(prompts, steps=1, guidance=1)
        render.grid(images.add(1).mul(127).byte(), prompts)

    def command_line(self, draw: random.Random) -> None:
        command = draw.choice(sorted(COMMANDS))
        own, options, limits = COMMANDS[command]
        given = list(own)
        for option in draw.sample(options, draw.randint(0, min(3, len(options)))):
            name, equals, _ = option.partition("=")
            odd = draw.choice((*ODD, text(draw, 8).replace("\0", "")))
            writes = name in ("--json", "--report", "--out")  # where a user says, so outside too
            sensible = draw.random() < 0.6 or writes
            given.append(option if sensible else name + equals * bool(odd) + odd)
        if draw.random() < 0.2 and given:
            given[draw.randrange(len(given))] = draw.choice((*ODD, *PATHS[:2]))
        if command == "train" and draw.random() < 0.5:
            given.append(f"{draw.choice(KEYS)}={value(draw)}")
        line = [word.replace("\0", "") for word in (command, *given, *limits) if word or command]
        with quiet() as (out, errors):
            try:
                main(line)
            except SystemExit as exit_:
                _check_exit(int(exit_.code or 0), out.getvalue(), errors.getvalue())

    # --- data ---

    def idx_file(self, draw: random.Random) -> None:
        file = self.folder / draw.choice(("i-idx", "i.gz"))
        data = mangled(draw, self.idx)
        if file.suffix == ".gz":
            big = draw.choices(self.idx_bombs, (20, 2, 1))[0]
            data = big if draw.random() < 0.2 else gzip.compress(data, 1)
            data = often_mangled(draw, data, 0.3)
        file.write_bytes(data)
        read_idx(file, draw.choice((1, 3)))

    def picture(self, draw: random.Random) -> None:
        """Damaged pictures, and small files that claim to be huge."""
        mode = draw.choice(("L", "RGB", "RGBA", "P", "I;16", "1", "LA"))
        kind = draw.choice(("PNG", "PNG", "GIF", "TIFF", "JPEG", "BMP", "WEBP", "JPEG2000"))
        stream = io.BytesIO()
        with contextlib.suppress(OSError, ValueError):  # not every kind has every mode
            Image.new(mode, (draw.randint(1, 40), draw.randint(1, 40))).save(stream, kind)
        data = stream.getvalue()
        if kind == "PNG" and draw.random() < 0.3:
            claimed = draw.choice((8000, 9000, 13000, 2**20, 2**31 - 1)).to_bytes(4, "big")
            header = data[12:16] + claimed * 2 + data[24:29]
            data = data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]
        data = often_mangled(draw, data, 0.8)
        resize = draw.choice(("pad", "stretch", "center-crop"))
        with contextlib.suppress(PictureError):
            decode(data, draw.choice((8, 64)), draw.choice((1, 3)), resize, 0.5)

    def caption_file(self, draw: random.Random) -> None:
        """A folder of pictures, whose captions are nonsense."""
        data = self._empty("data")
        for i in range(3):
            (data / f"{i}.png").write_bytes(self.png)
        kind = draw.randrange(3)
        if kind == 0:
            row: dict[str, object] = {"file_name": "0.png", "text": ["seven", "7"]}
            rows = (json_text(draw, row).replace("\n", " ") for _ in range(3))
            lines, name = "\n".join(rows), "metadata.jsonl"
        elif kind == 1:
            rows = (f"{draw.choice((*PATHS, '1.png'))},{text(draw)}" for _ in range(3))
            lines, name = "\n".join(["file_name,text", *rows]), "metadata.csv"
        else:
            lines, name = text(draw, 300), "0.txt"
        spoilt = often_mangled(draw, lines.encode("utf-8", "surrogatepass"))
        (data / name).write_bytes(spoilt)
        in_memory = f"data.in_memory={draw.choice(('true', 'false'))}"
        settings = ["data.source=folder", f"data.path={data}", in_memory, "data.max_bad=0.9"]
        chosen = read_config(self.folder / "toy.yaml", settings).data.settings()
        with quiet():
            load(chosen, "train")
            batch = build_loader(chosen, 4, 0).batch(0)
            self.pipeline.text.check(batch.captions)

    def tar_file(self, draw: random.Random) -> None:
        data = tar(draw, self.png)
        kind = draw.randrange(8)
        if kind < 3:
            data = (gzip, bz2, lzma)[kind].compress(data)
        elif kind == 3 and draw.random() < 0.1:
            data = draw.choice(self.tar_bombs)
        file = self._empty("shards") / "0.tar"
        file.write_bytes(often_mangled(draw, data, 0.4))
        path = str(file) if draw.random() < 0.9 else draw.choice(PATHS)
        key = draw.choice((None, "caption", "txt", text(draw, 5)))
        shards = open_shards(path, "train", caption_key=key, test_share=draw.choice((0.0, 0.3)))
        settings = DataSettings("webdataset", image_size=8)
        for i in range(len(shards)):
            for _, record in shards.read(i, draw.choice((0, 0, 1, 10**9))):
                decode_record(record, settings)
                self._readable(record.captions)

    def parquet_file(self, draw: random.Random) -> None:
        from datasets import disable_progress_bars

        from fluxsmith.data.hf import load as open_rows

        disable_progress_bars()
        file = self._empty("rows") / "train.parquet"
        file.write_bytes(often_mangled(draw, self._parquet(draw), 0.5))
        settings = DataSettings("hf", image_size=8)
        with quiet():
            source = open_rows(
                str(file), "train", streaming=draw.random() < 0.8,
                image_key=draw.choice((None, None, "image", "x")),
                caption_key=draw.choice((None, "text", "image")),
            )  # fmt: skip
            if hasattr(source, "read"):
                records = [r for i in range(len(source)) for _, r in source.read(i, 0)]
            else:
                source.captions()
                records = [source[i] for i in range(len(source))]
        for record in records:
            decode_record(record, settings)
            self._readable(record.captions)

    def embedding_shard(self, draw: random.Random) -> None:
        """The cache of embeddings, in which one file is nonsense."""
        cache = self._empty("cache")
        kind = draw.randrange(3)
        if kind == 0:
            (cache / "0.safetensors").write_bytes(mangled(draw, self.shard))
        elif kind == 1:
            good = self.folder / "good.safetensors"
            good.write_bytes(self.shard)
            tensors = read_tensors(good)
            tensors[draw.choice(sorted(tensors))] = tensor(draw)
            if draw.random() < 0.2:
                tensors.pop(draw.choice(sorted(tensors)))
            prompts = json_text(draw, list(PROMPTS)).encode("utf-8", "replace").decode()
            about = {"format": "x", draw.choice(("prompts", "prompts", "x")): prompts}
            whole = {n: t.clone() for n, t in tensors.items() if t.numel() < 10**6}
            write_tensors(cache / "0.safetensors", whole, about)
        else:
            (cache / "0.safetensors").write_bytes(self.shard)
            below = cache / "transformers-0"
            below.mkdir()
            for name in ("digests.json", "transformers-0/encoder.json"):
                spoilt = json_text(draw, ABOUT).encode("utf-8", "surrogatepass")
                (cache / name).write_bytes(often_mangled(draw, spoilt))
            find_stored(cache, "transformers", False, {})
            DigestBook(cache)
        read = EmbeddingCache(cache, ABOUT)
        for prompt in PROMPTS:
            read.counts(prompt)
            found = read.get(prompt)
            if found is not None:
                assemble([found, _encoded("three")], "trim", 64)
        read.put("new", _encoded("new"))
        read.flush()

    # --- weights and runs ---

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
        plain = mangled(draw, plain) if draw.random() < 0.3 else repacked(draw, plain)
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

    def resumed_folder(self, draw: random.Random) -> None:
        """A run's folder, whose records and pictures are nonsense."""
        folder = self._empty("run")
        lines = "\n".join(json_text(draw, RECORD).replace("\n", " ") for _ in range(4))
        spoilt = lines.encode("utf-8", "surrogatepass")
        (folder / "metrics.jsonl").write_bytes(often_mangled(draw, spoilt))
        for step in ("1", "2", "9" * 30, text(draw, 5).replace("/", "").replace("\0", "")):
            with contextlib.suppress(OSError, ValueError):
                (folder / f"sample-{step}.png").write_bytes(often_mangled(draw, self.png))
        said: list[str] = []
        recorder = Recorder(folder, 5, said.append)
        recorder.write(6, {"loss": 0.5})
        if not (folder / "metrics.jsonl").read_bytes().endswith(b'{"step": 6, "loss": 0.5}\n'):
            raise Unexpected("a record was lost")
        if any("can't be written" in line for line in said):
            raise Unexpected(said[0])

    def safetensors_file(self, draw: random.Random) -> None:
        file = self.folder / draw.choice(("m.safetensors", "m.safetensors.index.json"))
        if file.suffix == ".json":
            where = {"a": "t.safetensors", "b": draw.choice(("t.safetensors", *PATHS))}
            index = json_text(draw, {"weight_map": where}).encode("utf-8", "surrogatepass")
            file.write_bytes(often_mangled(draw, index))
        else:
            file.write_bytes(mangled(draw, (self.folder / "t.safetensors").read_bytes()))
        for found in read_tensors(file).values():
            found.sum()

    def foreign_weights(self, draw: random.Random) -> None:
        """Files for `import`: exported ones, and pickles, with something wrong in them."""
        folder, out = self._empty("foreign"), self.folder / "imported.pt"
        out.unlink(missing_ok=True)
        for name, data in self.exported.items():
            (folder / name).write_bytes(data)
        source = folder / "m.safetensors"
        network = read_tensors(source)
        kind = draw.randrange(4)
        if kind == 0:
            name = draw.choice(sorted(self.exported))
            (folder / name).write_bytes(mangled(draw, self.exported[name]))
        elif kind == 1:
            about = json_text(draw, {"config": {}, "step": 3, "metadata": {}})
            changed = {**network, draw.choice(sorted(network)): tensor(draw)}
            whole = {n: t.clone() for n, t in changed.items() if t.numel() < 10**6}
            write_tensors(source, whole, {"fluxsmith": about.encode("utf-8", "replace").decode()})
        else:
            source = folder / "diffusion-1.pt"
            state = {f"_score_network.{name}": found for name, found in network.items()}
            state[draw.choice(sorted(state))] = nonsense(draw)  # type: ignore[assignment]
            config = {"axes_dim": nonsense(draw), "patch_size": nonsense(draw), "theta": 1}
            whole_state = state if draw.random() < 0.9 else nonsense(draw)
            contents = {"model_state_dict": whole_state, "config": config, "step": nonsense(draw)}
            torch.save(contents if kind == 2 else state | {"x": Planted()}, source)
        import_model(source, out)

    def autoencoder_file(self, draw: random.Random) -> None:
        folder = self._empty("vae")
        changed = dict(self.autoencoder)
        for _ in range(draw.randint(0, 2)):
            name = draw.choice(sorted(changed))
            if draw.random() < 0.5:
                changed[name] = tensor(draw)
            else:
                del changed[name]
        whole = {n: t.clone() for n, t in changed.items() if t.numel() < 10**6}
        about = {"shift_factor": value(draw), "scaling_factor": value(draw)}
        write_tensors(
            folder / "x.safetensors", whole,
            {k: v.encode("utf-8", "replace").decode() for k, v in about.items()},
        )  # fmt: skip
        if draw.random() < 0.5:
            settings = json_text(draw, {"shift_factor": 0.1, "norm_num_groups": 32})
            (folder / "config.json").write_text(settings, "utf-8", "surrogatepass")
        read_autoencoder(folder if draw.random() < 0.5 else folder / "x.safetensors")

    # --- what they share ---

    def _empty(self, name: str) -> Path:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def _readable(self, captions: tuple[str, ...]) -> None:
        """The text encoder takes what a source gives, or says in a line why not."""
        with contextlib.suppress(UserError):
            self.pipeline.text.check(captions)
        for caption in captions:
            caption.encode()

    def _parquet(self, draw: random.Random) -> bytes:
        import pyarrow as pa
        import pyarrow.parquet as pq

        def column() -> list[object]:
            kind = draw.choice((
                {"bytes": self.png, "path": None}, {"bytes": b"", "path": draw.choice(PATHS)},
                self.png, "seven", 7, None, True, ["a", "b"], [], {"a": 1}, 0.5, [[None]], text,
            ))  # fmt: skip
            if kind is text:
                return [text(draw).encode("utf-8", "replace").decode() for _ in range(3)]
            return [kind if draw.random() < 0.9 else None for _ in range(3)]

        good = {"bytes": self.png, "path": None}
        columns = {"image": [good] * 3 if draw.random() < 0.5 else column()}
        if draw.random() < 0.9:
            columns["text"] = column()
        table = pa.table(columns)
        if draw.random() < 0.7:
            types = {"image": {"_type": "Image"}, "text": {"dtype": "string", "_type": "Value"}}
            features = json_text(draw, {"info": {"features": types}})
            table = table.replace_schema_metadata(
                {"huggingface": features.encode("utf-8", "replace")}
            )
        stream = io.BytesIO()
        pq.write_table(table, stream, compression=draw.choice(("none", "snappy", "gzip", "zstd")))
        return stream.getvalue()


def _check_exit(code: int, out: str, errors: str) -> None:
    if code not in (0, 2):
        raise Unexpected(f"exit code {code}: {errors[:300]}")
    said = errors.startswith("error: ") or "\nerror: " in errors or "Usage: " in out + errors
    if code == 2 and not said:
        raise Unexpected(f"no line that says why: {errors[:300]}")
    if "Traceback" in errors:
        raise Unexpected(errors[-2000:])


def _encoded(prompt: str) -> Encoded:
    draw = torch.Generator().manual_seed(len(prompt))
    tokens = torch.randn(1 + len(prompt) % 7, 4, generator=draw)
    return Encoded(tokens, torch.randn(3, generator=draw), len(tokens), len(tokens))


def _tar_bombs() -> Iterator[bytes]:
    """A gigabyte and more, as a file of kilobytes: each compression, and a sparse file."""
    member = tarfile.TarInfo("0.png")
    member.size = 10**9
    name = tarfile.TarInfo("0.png")
    name.size, name.type = 10**9, b"L"
    for header in (member.tobuf(), name.tobuf()):
        for press in (gzip.compress, bz2.compress, lzma.compress):
            yield press(header) + 100 * press(bytes(10**7))
        yield header
    for press in (gzip.compress, bz2.compress, lzma.compress):
        zeros, many = press(bytes(10**7 // 512 * 512)), b""
        for i in range(100):
            member.name, member.size = f"{i}.png", 10**7 // 512 * 512
            many += press(member.tobuf()) + zeros
        yield many


def _tiny_autoencoder() -> dict[str, torch.Tensor]:
    from fluxsmith.autoencoder.network import AutoencoderNetwork, AutoencoderParams

    torch.manual_seed(0)
    return AutoencoderNetwork(
        AutoencoderParams(ch=32, ch_mult=(1, 1), num_res_blocks=1)
    ).state_dict()
