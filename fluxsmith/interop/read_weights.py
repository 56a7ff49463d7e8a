"""A network's weights from whatever file or folder they come in, under BFL's names."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, NonNegativeInt
from torch import Tensor

from fluxsmith.errors import UserError
from fluxsmith.interop import xdiffusion
from fluxsmith.interop.diffusers_names import from_diffusers
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.files import explaining, read_json
from fluxsmith.storage.tensor_files import SAFETENSORS, read_metadata, read_pickled, read_tensors

PREFIX = "model.diffusion_model."  # of checkpoints that hold a whole pipeline in one file
NOTES = "fluxsmith"  # the key in a file's metadata that holds our notes, and their folder's name


class Notes(BaseModel):
    """What an export of ours says of the model, so that importing it gives the model back."""

    config: dict[str, Any]
    step: NonNegativeInt = 0
    metadata: dict[str, Any] = {}


@dataclass(frozen=True)
class Weights:
    """What a file or folder holds. Tensors stay on disk, in their own dtype, until used."""

    kind: str  # bfl, diffusers, xdiffusion or fluxsmith
    origin: str
    network: dict[str, Tensor]  # under BFL's names
    text: dict[str, Tensor] = field(default_factory=dict)  # of a learned encoder, its own names
    config: Mapping[str, Any] | None = None  # of the run, if fluxsmith wrote it
    settings: Mapping[str, Any] = field(default_factory=dict)  # what else is known of the network
    step: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)  # of the checkpoint, likewise

    @property
    def prediction(self) -> str:
        """What the network gives, `flow.prediction`: the velocity, unless fluxsmith wrote it and
        says otherwise."""
        return (self.config or {}).get("flow", {}).get("prediction", "velocity")

    def tensors(self) -> dict[str, Tensor]:
        """All of them under a pipeline's names."""
        network = {f"network.{name}": tensor for name, tensor in self.network.items()}
        return network | {f"text.{name}": tensor for name, tensor in self.text.items()}


def read_weights(path: str | Path, *, shapes: bool = False) -> Weights:
    """From a BFL file, a diffusers folder or file, shards, a checkpoint of ours (its average) or of
    the lesson's repository.

    With `shapes` the network's tensors are on the meta device: enough to check them, without the
    memory that joining diffusers' layers takes.
    """
    path = Path(path).expanduser()
    if path.is_dir() and checkpoints.find(path):
        path = checkpoints.newest(path)
    if path.is_file() and path.suffix not in (*SAFETENSORS, ".json"):
        return _from_pickled(path)
    transformer = path / "transformer"
    tensors = read_tensors(transformer if transformer.is_dir() else path)
    if shapes:
        tensors = {name: tensor.to("meta") for name, tensor in tensors.items()}
    if any(name.startswith(PREFIX) for name in tensors):
        tensors = _below(PREFIX, tensors)
    kind = "bfl"
    if any(name.startswith(("transformer_blocks.", "single_transformer_")) for name in tensors):
        kind, tensors = "diffusers", from_diffusers(tensors)
    text, notes = text_file(path), read_notes(path)
    found = Weights(
        kind,
        str(path),
        tensors,
        text=read_tensors(text) if text.is_file() else {},
        settings=_settings(path),
    )
    return found if notes is None else replace(found, **dict(notes))


def read_notes(path: Path) -> Notes | None:
    """The notes in an export of ours; None in other files and folders."""
    file = path / NOTES / "about.json"
    with explaining(f"{path}: can't read what fluxsmith wrote of it", "; export again", ValueError):
        text = file.read_text("utf-8") if file.is_file() else read_metadata(path).get(NOTES)
        return None if text is None else Notes.model_validate_json(text)


def text_file(path: Path) -> Path:
    """Where the learned text encoder lies that belongs to an exported file or folder."""
    if path.is_dir():
        return path / NOTES / "text.safetensors"
    return path.with_suffix(".text.safetensors")


def require_text(weights: Weights, encoder: str) -> None:
    """Raises a UserError if the model's text encoder was learned and isn't there."""
    if encoder == "bytes" and not weights.text:
        raise UserError(
            f"{weights.origin} comes without the text encoder that was learned with it; give the "
            f"folder of a diffusers export, or keep the .text.safetensors beside the file"
        )


def _settings(path: Path) -> dict[str, Any]:
    """What the folders of a diffusers pipeline say of the network, if `path` is one."""
    known: dict[str, Any] = {}
    for config in (path / "config.json", path / "transformer/config.json"):
        if config.is_file():
            known["axes_dim"] = read_json(config).get("axes_dims_rope")
    if (path / "vae/config.json").is_file():
        known["autoencoder"] = str(path / "vae")
    scheduler = path / "scheduler/scheduler_config.json"
    if scheduler.is_file():
        shifted = read_json(scheduler).get("use_dynamic_shifting", False)
        known["schedule"] = "flux" if shifted else "uniform"
    return known


def _from_pickled(path: Path) -> Weights:
    contents = read_pickled(path)
    if xdiffusion.is_xdiffusion(contents):
        step = contents.get("step")
        return Weights(
            "xdiffusion",
            str(path),
            xdiffusion.network_of(contents),
            settings=xdiffusion.settings_of(contents),
            step=step if isinstance(step, int) else 0,
        )
    if isinstance(contents, dict) and contents.get("format") == checkpoints.FORMAT:
        contents = checkpoints.load(path)
        return Weights(
            "fluxsmith",
            str(path),
            _below("network.", contents["ema"]),
            text=_below("text.", contents["ema"]),
            config=contents["config"],
            step=contents["step"],
            metadata=contents["metadata"],
        )
    if isinstance(contents, dict) and all(isinstance(t, Tensor) for t in contents.values()):
        return Weights("bfl", str(path), contents)
    raise UserError(
        f"{path} is none of: BFL's file, a diffusers folder, a checkpoint of fluxsmith or of "
        f"xdiffusion (diffusion-*.pt); give one of these"
    )


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
