"""What nonsense is tried on: everything that reads what users or strangers wrote."""

import contextlib
import gzip
import io
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from reliability.nonsense import (
    CONFIG,
    KEYS,
    PATHS,
    Planted,
    json_text,
    mangled,
    nonsense,
    often_mangled,
    tar,
    tensor,
    text,
    value,
)

from fluxsmith.cli import main
from fluxsmith.config import read_config
from fluxsmith.data import build_loader
from fluxsmith.interop.exporting import export
from fluxsmith.interop.importing import import_model
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.tensor_files import read_tensors, write_tensors
from fluxsmith.training.run import train

# Command lines: what belongs to a command, options with values that make sense, and what is added
# to keep an input short.
COMMANDS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "train": (["toy.yaml"], ["train.batch_size=2", "--resume=auto", "--overwrite",
        "--fork=output/toy"], ["train.steps=1", "output_dir=out/cli", "sample.steps=1"]),
    "sample": (["output/toy"], ["--prompt=7", "--steps=auto", "--guidance=2", "--solver=heun",
        "--height=16", "--filmstrip", "--init-image=0.png", "--mask=0.png", "--dtype=bfloat16",
        "--offload=blocks", "--config=toy.yaml", "--set=text.cache=memory"], ["--steps=1"]),
    "evaluate": (["output/toy"], ["--metrics=straightness", "--json=out.json", "--guidance=2"],
        ["--num-samples=2", "--steps=1", "--metrics=validation_loss"]),
    "data": (["toy.yaml"], ["--out=sheet.png", "data.image_size=16", "data.channels=3"], []),
    "import": (["bfl/m.safetensors", "out/i.pt"], ["--config=toy.yaml", "model.depth=1"], []),
    "export": (["output/toy", "out/e.safetensors"], ["--format=bfl", "--dtype=float16"],
        ["--no-samples"]),
    "": ([], ["--help", "train", "sample", "--", "-", "="], []),
}  # fmt: skip
ODD = ("-1", "0", "1e9", "nan", "9" * 30, "x" * 5000, "\udcff", "", "all", "/proc/no/x", "--help")


class Unexpected(Exception):  # noqa: N818 (an outcome, not an error of ours)
    """An outcome that is neither a result nor one line."""


@contextlib.contextmanager
def quiet() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        yield out, errors


class Targets:
    """Each public method tries one input; it reads and writes in the working folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "toy.yaml").write_text(CONFIG, encoding="utf-8")
        with quiet():
            train(read_config(folder / "toy.yaml", [f"output_dir={folder / 'output' / 'toy'}"]))
            checkpoint = checkpoints.newest(folder / "output" / "toy")
            export(checkpoint, folder / "bfl" / "m.safetensors", "bfl", samples=False)
        self.exported = {path.name: path.read_bytes() for path in (folder / "bfl").iterdir()}
        stream = io.BytesIO()
        Image.new("RGB", (8, 8), 100).save(stream, "PNG")
        self.png = stream.getvalue()
        (folder / "0.png").write_bytes(self.png)

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

    def tar_file(self, draw: random.Random) -> None:
        data = tar(draw, self.png)
        if draw.random() < 0.3:
            data = gzip.compress(data)
        file = self._empty("shards") / "0.tar"
        file.write_bytes(often_mangled(draw, data, 0.4))
        path = str(file) if draw.random() < 0.9 else draw.choice(PATHS)
        key = draw.choice(("null", "caption", "txt", value(draw)))
        test_share = draw.choice((0, 0.3))
        self._train_on(
            "webdataset", path, f"data.caption_key={key}", f"data.test_share={test_share}"
        )

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
            _write(source, changed, {"fluxsmith": about})
        else:
            source = folder / "diffusion-1.pt"
            state = {f"_score_network.{name}": found for name, found in network.items()}
            state[draw.choice(sorted(state))] = nonsense(draw)  # type: ignore[assignment]
            config = {"axes_dim": nonsense(draw), "patch_size": nonsense(draw), "theta": 1}
            whole = state if draw.random() < 0.9 else nonsense(draw)
            contents = {"model_state_dict": whole, "config": config, "step": nonsense(draw)}
            torch.save(contents if kind == 2 else state | {"x": Planted()}, source)
        import_model(source, out)

    def _empty(self, name: str) -> Path:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def _train_on(self, source: str, path: str, *settings: str) -> None:
        """A batch of the data, with captions that any encoder can be given."""
        given = [f"data.source={source}", f"data.path={path}", "data.max_bad=0.9", *settings]
        config = read_config(self.folder / "toy.yaml", given)
        with quiet():
            captions = build_loader(config.data, 4, 0).batch(0).captions
        for caption in captions:
            caption.encode()


def _check_exit(code: int, out: str, errors: str) -> None:
    if code not in (0, 2):
        raise Unexpected(f"exit code {code}: {errors[:300]}")
    said = errors.startswith("error: ") or "\nerror: " in errors or "Usage: " in out + errors
    if code == 2 and not said:
        raise Unexpected(f"no line that says why: {errors[:300]}")
    if "Traceback" in errors:
        raise Unexpected(errors[-2000:])


def _write(file: Path, tensors: dict[str, torch.Tensor], about: dict[str, str]) -> None:
    """Tensors that fit in a file, with metadata that can be encoded."""
    whole = {name: found.clone() for name, found in tensors.items() if found.numel() < 10**6}
    plain = {key: text.encode("utf-8", "replace").decode() for key, text in about.items()}
    write_tensors(file, whole, plain)
