"""The models in a file and the names of their tensors, however others spell them.

A file may hold one model or several, each below a prefix: a network below `model.diffusion_model.`,
an autoencoder below `vae.` or `first_stage_model.`, text encoders below `text_encoders.`; and
wrappers of torch leave words in between. A model is found by one tensor that it always has, so any
prefix will do.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fluxsmith.errors import UserError
from fluxsmith.storage.files import read_json, read_whole
from fluxsmith.storage.hub_folder import local_path
from fluxsmith.storage.numbers import dequantised, refuse_quantised, refuse_quantised_config
from fluxsmith.storage.tensor_files import read_metadata, read_tensors

# A tensor that each model has, under the names that it may have.
TELLTALE = {
    "network": ("img_in.weight", "x_embedder.weight"),  # BFL's and diffusers'
    "autoencoder": ("decoder.conv_in.weight",),
    "clip": ("embeddings.token_embedding.weight",),  # below text_model., too, by some
    "t5": ("encoder.block.0.layer.0.SelfAttention.q.weight",),
}
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
AVERAGE = re.compile(r"(^|[._])ema([._]|$)", re.IGNORECASE)
COUNTERS = ("decay", "num_updates", "n_averaged", "step", "initted")  # beside an average
POSITIONS = "position_ids"  # 0, 1, 2 ... in CLIP files that older versions of transformers wrote
NORM = re.compile(r"\.(query|key)_norm\.weight$")

log = logging.getLogger(__name__)


LORAS = ("pytorch_lora_weights", "adapter_model")  # diffusers' own name of a file, and PEFT's
# Where each lies in a folder of diffusers, and what is fetched of a repository for it.
FOLDER = {"network": "transformer", "autoencoder": "vae"}
CLASSES = {"network": "FluxTransformer2DModel", "autoencoder": "AutoencoderKL"}
WANTED = {
    "network": [
        ["transformer/*", "model_index.json", "scheduler/*", "vae/*", "README.md"],
        ["*.safetensors", "*.json", "README.md"],
    ],
    "autoencoder": [["vae/*"], ["ae.safetensors"], ["*.safetensors", "config.json"]],
    "lora": [
        *([f"{name}.safetensors", "adapter_config.json"] for name in LORAS),
        ["*.safetensors", "adapter_config.json"],
        *([f"{name}.bin", "adapter_config.json"] for name in LORAS),
    ],
}


def read_part(path: str | Path, part: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """One of the models that a file, a folder or a hub id holds: its tensors under its own names,
    in floating point, and the settings beside them, of the folder's config.json, else of the file's
    metadata."""
    path = local_path(path, WANTED.get(part, []))
    if part in FOLDER and (path / FOLDER[part]).is_dir():
        path = path / FOLDER[part]
    config, origin = (path if path.is_dir() else path.parent) / "config.json", str(path)
    if path.is_dir():
        settings = read_json(config) if config.is_file() else {}
    else:  # perhaps it is of something else that lies there
        settings = (part in CLASSES and read_whole(config)) or {}
        if settings.get("_class_name") != CLASSES.get(part):
            settings = {}
    refuse_quantised_config(settings, origin)
    tensors, metadata = part_of(read_tensors(path), part, origin), read_metadata(path)
    refuse_quantised(tensors, metadata, origin)
    return dequantised(tensors, origin), settings or dict(metadata)


def models_in(names: Iterable[str]) -> set[str]:
    """Which of the models in TELLTALE a file holds, by the names of its tensors."""
    plain = [WRAPPERS.sub("", name) for name in names]
    return {kind for kind, telltales in TELLTALE.items() if _prefixes(plain, telltales)}


def part_of(tensors: Mapping[str, Tensor], part: str, origin: str) -> dict[str, Tensor]:
    """The tensors of one of the models in TELLTALE under its own names, without prefixes; of an
    average beside the weights, the weights. All tensors, where the model isn't found."""
    plain = {WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    prefixes = {kind: _prefixes(plain, names) for kind, names in TELLTALE.items()}
    if not prefixes[part]:
        return plain
    chosen = [p for p in prefixes[part] if not AVERAGE.search(p)] or prefixes[part]
    if len(chosen) > 1:
        raise UserError(
            f"{origin}: holds several models, below {' and '.join(chosen)}; give a file with one"
        )
    (prefix,) = chosen
    others = {p for found in prefixes.values() for p in found} - {prefix}
    if averages := [p for p in prefixes[part] if p != prefix]:
        log.warning("%s: the average below %s is left; the weights are used", origin, averages[0])
    found = {}
    for name, tensor in plain.items():
        if name.startswith(prefix) and not _elsewhere(name, prefix, others):
            own = name.removeprefix(prefix)
            if own in COUNTERS or own.endswith(POSITIONS):
                continue
            found[NORM.sub(r".\1_norm.scale", own) if part == "network" else own] = tensor
    return found


def _prefixes(names: Iterable[str], telltales: tuple[str, ...]) -> list[str]:
    """What stands before a telltale, the first of them that there is."""
    for telltale in telltales:
        ending = [name for name in names if f".{name}".endswith(f".{telltale}")]
        if ending:
            return [name.removesuffix(telltale) for name in ending]
    return []


def _elsewhere(name: str, prefix: str, others: set[str]) -> bool:
    """Whether a name below the prefix belongs to another model, below a longer prefix, or lies
    beside one: a model without a prefix has nothing in the others' first folders."""
    for other in others:
        if len(other) > len(prefix) and name.startswith(other):
            return True
        if not prefix and name.startswith(other.partition(".")[0] + "."):
            return True
    return not prefix and bool(AVERAGE.search(name.partition(".")[0]))
