"""A network's weights from whatever file or folder they come in, under BFL's names."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fluxsmith import checkpoint as checkpoints
from fluxsmith.errors import UserError
from fluxsmith.interop import embedded, xdiffusion
from fluxsmith.interop.diffusers_names import from_diffusers
from fluxsmith.tensorfile import SAFETENSORS, read_json, read_pickled, read_tensors

PREFIX = "model.diffusion_model."  # of checkpoints that hold a whole pipeline in one file


@dataclass(frozen=True)
class Weights:
    """What a file or folder holds. Tensors stay on disk, in their own dtype, until used."""

    kind: str  # bfl, diffusers, xdiffusion or fluxsmith
    origin: str
    network: dict[str, Tensor]  # under BFL's names
    text: dict[str, Tensor] = field(default_factory=dict)  # of a learned encoder, its own names
    config: Mapping[str, Any] | None = None  # of the run, where fluxsmith wrote it
    settings: Mapping[str, Any] = field(default_factory=dict)  # what else is known of the network
    step: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)  # of the checkpoint, likewise


def read_weights(path: str | Path, weights: str = "ema", *, shapes: bool = False) -> Weights:
    """From a BFL file, a diffusers folder or file, shards, a checkpoint of ours (its `weights`) or
    of the lesson's repository.

    With `shapes` the network's tensors are on the meta device: what there is to check, without the
    memory that joining diffusers' layers takes.
    """
    path = Path(path).expanduser()
    if path.is_dir() and checkpoints.find(path):
        path = checkpoints.newest(path)
    if path.is_dir():
        return _from_folder(path, shapes)
    if not path.is_file():
        raise UserError(f"there are no weights at {path}; check the path")
    if path.suffix in SAFETENSORS or path.suffix == ".json":
        return _from_tensors(path, shapes)
    return _from_pickled(path, weights)


def require_text(weights: Weights, encoder: str) -> None:
    """Raises a UserError where the model's text encoder was learned and isn't there."""
    if encoder == "bytes" and not weights.text:
        raise UserError(
            f"{weights.origin} comes without the text encoder that was learned with it; give the "
            f"folder of a diffusers export, or keep the .text.safetensors beside the file"
        )


def _from_folder(folder: Path, shapes: bool) -> Weights:
    """A diffusers folder: a whole pipeline, or its transformer alone."""
    transformer = folder / "transformer" if (folder / "transformer").is_dir() else folder
    config = transformer / "config.json"
    if not config.is_file():
        return _from_tensors(folder, shapes)
    settings = read_json(config)
    name = settings.get("_class_name", settings.get("architectures", "another model"))
    if name != "FluxTransformer2DModel":
        shown = ", ".join(map(str, name)) if isinstance(name, list) else name
        raise UserError(f"{transformer} holds {shown}, not diffusers' FluxTransformer2DModel")
    known: dict[str, Any] = {}
    if "axes_dims_rope" in settings:
        known["axes_dim"] = settings["axes_dims_rope"]
    if (folder / "vae").is_dir():
        known["autoencoder"] = str(folder / "vae")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        bent = read_json(scheduler).get("use_dynamic_shifting", False)
        known["schedule"] = "flux" if bent else "uniform"
    network = from_diffusers(_tensors(transformer, shapes))
    return _with_about(folder, Weights("diffusers", str(folder), network, settings=known))


def _from_tensors(path: Path, shapes: bool) -> Weights:
    tensors = _tensors(path, shapes)
    if any(name.startswith(PREFIX) for name in tensors):
        tensors = {n.removeprefix(PREFIX): t for n, t in tensors.items() if n.startswith(PREFIX)}
    kind = "bfl"
    if any(name.startswith(("transformer_blocks.", "single_transformer_")) for name in tensors):
        kind, tensors = "diffusers", from_diffusers(tensors)
    return _with_about(path, Weights(kind, str(path), tensors))


def _tensors(path: Path, shapes: bool) -> dict[str, Tensor]:
    tensors = read_tensors(path)
    return {name: t.to("meta") for name, t in tensors.items()} if shapes else tensors


def _with_about(path: Path, weights: Weights) -> Weights:
    """With what an export of ours carries beside the network."""
    weights = replace(weights, text=embedded.read_text(path))
    about = embedded.read_about(path)
    if about is None:
        return weights
    return replace(
        weights,
        config=about["config"],
        step=about.get("step", 0),
        metadata=about.get("metadata", {}),
    )


def _from_pickled(path: Path, weights: str) -> Weights:
    contents = read_pickled(path)
    if xdiffusion.is_xdiffusion(contents):
        step = contents.get("step", 0)
        return Weights(
            "xdiffusion",
            str(path),
            xdiffusion.network_of(contents, str(path)),
            settings=xdiffusion.settings_of(contents),
            step=step if isinstance(step, int) else 0,
        )
    if isinstance(contents, dict) and contents.get("format") == checkpoints.FORMAT:
        contents = checkpoints.load(path)
        return Weights(
            "fluxsmith",
            str(path),
            _below("network.", contents[weights]),
            text=_below("text.", contents[weights]),
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
