"""A network's weights from whatever file or folder they come in, under BFL's names."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, NonNegativeInt
from torch import Tensor

from fluxsmith.config.places import found_in
from fluxsmith.errors import UserError
from fluxsmith.interop import xdiffusion
from fluxsmith.interop.diffusers_names import from_diffusers
from fluxsmith.interop.provenance import read_provenance
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.files import explaining, read_json
from fluxsmith.storage.hub_folder import local_path
from fluxsmith.storage.model_parts import FOLDER, WANTED, models_in, part_of
from fluxsmith.storage.numbers import dequantised, refuse_quantised, refuse_quantised_config
from fluxsmith.storage.shipped import shipped_folder
from fluxsmith.storage.tensor_files import (
    is_pickled,
    read_metadata,
    read_pickled,
    read_tensors,
    tensors_in,
)

NOTES = "fluxsmith"  # the key in a file's metadata that holds our notes, and their folder's name

# diffusers' pipelines, each with its `model.conditioning`, and the class of the network. Others are
# refused: their weights would load and draw something else.
PIPELINES = {
    "FluxPipeline": "text",
    "FluxImg2ImgPipeline": "text",
    "FluxInpaintPipeline": "text",
    "FluxFillPipeline": "fill",
    "FluxKontextPipeline": "kontext",
    "FluxKontextInpaintPipeline": "kontext",
}
NETWORK = "FluxTransformer2DModel"


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

    @property
    def conditioning(self) -> str:
        """What the network is given, `model.conditioning`: text alone if nothing says more."""
        ours = (self.config or {}).get("model", {}).get("conditioning")
        return ours or self.settings.get("conditioning", "text")

    def tensors(self) -> dict[str, Tensor]:
        """All of them under a pipeline's names."""
        network = {f"network.{name}": tensor for name, tensor in self.network.items()}
        return network | {f"text.{name}": tensor for name, tensor in self.text.items()}


def read_weights(source: str | Path, *, shapes: bool = False) -> Weights:
    """From a BFL file, a diffusers folder or file, shards, a hub id, a checkpoint of ours (its
    average) or of the lesson's repository.

    With `shapes` the network's tensors are on the meta device: enough to check them, without the
    memory that joining diffusers' layers takes.
    """
    path = shipped_folder(source) or local_path(source, WANTED["network"])
    if path.is_dir() and checkpoints.find(path):
        path = checkpoints.newest(path)
    if own := checkpoints.load_if_ours(path):
        return _of_ours(path, own)
    contents = None
    if path.is_file() and path.suffix != ".json" and is_pickled(path):
        contents = read_pickled(path)
        if xdiffusion.is_xdiffusion(contents):
            return _of_xdiffusion(path, contents)
        if not tensors_in(contents):
            raise UserError(
                f"{path} is none of: BFL's file, a diffusers folder, a checkpoint of fluxsmith or "
                f"of xdiffusion (diffusion-*.pt); give one of these"
            )
    folder = path / FOLDER["network"] if (path / FOLDER["network"]).is_dir() else path
    _refuse_others(path, folder)
    tensors = read_tensors(folder) if contents is None else tensors_in(contents)
    metadata = read_metadata(folder) if contents is None else {}
    kind, network = network_of(tensors, metadata, str(path), shapes)
    text, notes = text_file(path), read_notes(path, metadata)
    found = Weights(
        kind,
        str(source),
        network,
        text=read_tensors(text) if text.is_file() else {},
        settings=_settings(path) | _neighbours(str(source), path, models_in(tensors)),
        metadata={"source": {**read_provenance(str(source), path, metadata), "form": kind}},
    )
    if notes is None:
        return found
    place = path if path.is_dir() else path.parent
    return replace(found, **{**dict(notes), "config": found_in(place, notes.config)})


def network_of(
    tensors: dict[str, Tensor], metadata: Mapping[str, str], origin: str, shapes: bool = False
) -> tuple[str, dict[str, Tensor]]:
    """The network among a file's tensors under BFL's names, in floating point, and whose names they
    had: bfl or diffusers. What is joined or multiplied out is taken out of its file's memory."""
    network = part_of(tensors, "network", origin)
    refuse_quantised(network, metadata, origin)
    if shapes:
        network = {name: tensor.to("meta") for name, tensor in network.items()}
    network = dequantised(network, origin)
    if any(name.startswith(("transformer_blocks.", "single_transformer_")) for name in network):
        return "diffusers", from_diffusers(network)
    return "bfl", network


def read_notes(path: Path, metadata: Mapping[str, str]) -> Notes | None:
    """The notes in an export of ours, the files that they name found from here; None in other
    files and folders."""
    file = path / NOTES / "about.json"
    with explaining(f"{path}: can't read what fluxsmith wrote of it", "; export again", ValueError):
        text = file.read_text("utf-8") if file.is_file() else metadata.get(NOTES)
        if text is None:
            return None
        return Notes.model_validate_json(text)


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


def _refuse_others(path: Path, folder: Path) -> None:
    """Raises a UserError for a folder whose own words say that it holds something else, or that its
    weights are quantised."""
    fix = "give a folder of FLUX.1, of its Fill or of its Kontext, or another file of the model"
    names = {path / "model_index.json": [*PIPELINES], folder / "config.json": [NETWORK]}
    for file, known in names.items():
        settings = read_json(file) if file.is_file() else {}
        kind = settings.get("_class_name", known[0])
        if kind not in known:
            raise UserError(f"{file}: is a {kind}, which can't be drawn with here; {fix}")
        refuse_quantised_config(settings, str(file))


def _settings(path: Path) -> dict[str, Any]:
    """What the folders of a diffusers pipeline say of the network, if `path` is one."""
    known: dict[str, Any] = {}
    for config in (path / "config.json", path / "transformer/config.json"):
        if config.is_file():
            known["axes_dim"] = read_json(config).get("axes_dims_rope")
    if (path / "model_index.json").is_file():
        named = read_json(path / "model_index.json").get("_class_name", "FluxPipeline")
        known["conditioning"] = PIPELINES[named]
    scheduler = path / "scheduler/scheduler_config.json"
    if scheduler.is_file():
        known["scheduler"] = read_json(scheduler)
    return known


def _neighbours(source: str, path: Path, inside: set[str]) -> dict[str, str]:
    """Where the network's autoencoder and text encoders lie: `inside` the same file, in the folder
    beside, or under the same hub id."""
    hub = path.is_dir() and not Path(source).expanduser().exists()
    home, known = source if hub else str(path), {}
    if (path / "vae/config.json").is_file():
        known["autoencoder"] = home if hub else str(path / "vae")
    if hub and (path / "model_index.json").is_file():
        known["text"] = home
    if all((path / name).is_dir() for name in ("text_encoder", "text_encoder_2")):
        known["text"] = home
    if "autoencoder" in inside:
        known["autoencoder"] = home
    if inside >= {"clip", "t5"}:
        known["text"] = home
    return known


def _of_ours(path: Path, contents: Mapping[str, Any]) -> Weights:
    """The averaged weights of a checkpoint."""
    return Weights(
        "fluxsmith",
        str(path),
        _below("network.", contents["ema"]),
        text=_below("text.", contents["ema"]),
        config=contents["config"],
        step=contents["step"],
        metadata=contents["metadata"],
    )


def _of_xdiffusion(path: Path, contents: dict[str, Any]) -> Weights:
    """What a checkpoint of the lesson's repository holds."""
    step, network = contents.get("step"), xdiffusion.network_of(contents)
    refuse_quantised(network, {}, str(path))
    return Weights(
        "xdiffusion",
        str(path),
        network,
        settings=xdiffusion.settings_of(contents),
        metadata={"source": {"name": path.name}},
        step=step if isinstance(step, int) else 0,
    )


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
