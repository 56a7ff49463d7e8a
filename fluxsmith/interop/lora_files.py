"""LoRA files of all programs, read and written. Every tensor of a file lands in a layer, or the
file is refused by a line that says which did not, and why."""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxsmith.adapters.low_rank import LowRank, cut, joined
from fluxsmith.config import RunConfig
from fluxsmith.config.places import portable_name
from fluxsmith.config.reading import build_config
from fluxsmith.errors import UserError
from fluxsmith.interop.lora_names import (
    DIFFUSERS,
    FORMATS,
    KEY,
    Format,
    names_of,
    parts_of,
    place_of,
    swaps,
)
from fluxsmith.interop.provenance import spec_of
from fluxsmith.model.flux import PRESETS
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.files import explaining, make_folder, parse_mapping, read_json
from fluxsmith.storage.hub_folder import local_path
from fluxsmith.storage.model_parts import WANTED
from fluxsmith.storage.tensor_files import (
    is_pickled,
    read_metadata,
    read_pickled,
    read_tensors,
    write_tensors,
)
from fluxsmith.storage.weight_files import SAFETENSORS, weight_files

PEFT = "lora_adapter_metadata"  # PEFT's settings in a file's metadata, as diffusers keeps them
KOHYA = ("ss_network_module", "ss_network_dim", "ss_network_alpha")  # kohya's
HASHES = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")  # of a file's tensors
TEXT = r"lora_te\d?_|text_encoder|text_model|clip_[lg]|t5xxl"

# Why tensors have no place: a pattern of their names, and what it says of the file.
CAUSES = {
    r"^img_in\.weight$": "it is a whole network; fluxsmith lora extract finds what two differ in",
    "lokr_": "it is a LoKr, and only LoRAs are supported",
    "hada_": "it is a LoHa, and only LoRAs are supported",
    "oft_": "it is an OFT, and only LoRAs are supported",
    "dora_scale|magnitude_vector": "it is a DoRA, and only LoRAs are supported",
    TEXT: "it changes text encoders too, which stay as they are here; fluxsmith lora convert "
    "--without-text leaves them out",
    r"\.bias$|\.diff(_b)?$|set_weight$|reshape_weight$|norm\w*\.(scale|weight)$": "it changes more "
    "than the weights of linear layers, as those of FLUX.1 Canny and Depth do",
    "(down|up|mid|input|output|middle)_blocks?": "it is for Stable Diffusion 1, 2 or XL",
    "joint_blocks": "it is for Stable Diffusion 3",
}


@dataclass(frozen=True)
class Lora:
    """What a file holds."""

    origin: str
    form: str  # one of FORMATS, or "fluxsmith" for a run of ours
    changes: list[LowRank]
    metadata: Mapping[str, str] = field(default_factory=dict)
    left_out: Sequence[str] = ()  # the names of tensors for text encoders


def read_lora(path: str | Path, *, without_text: bool = False) -> Lora:
    """From a file of any program, a folder of PEFT's or diffusers', a hub id of one, or a LoRA run
    of ours (its average). Tensors for text encoders are refused, or left out by `without_text`."""
    path = local_path(path, WANTED["lora"])
    if path.is_dir() and checkpoints.find(path):
        path = checkpoints.newest(path)
    if ours := checkpoints.load_if_ours(path):
        return _of_a_run(path, ours)
    tensors, metadata, settings = _contents(path)
    pairs: dict[str, dict[str, Tensor]] = {}
    left_out, homeless = [], []
    for name, tensor in tensors.items():
        match = KEY.fullmatch(name)
        if without_text and re.search(TEXT, name):
            left_out.append(name)
        elif match is None or place_of(match["base"]) is None or not isinstance(tensor, Tensor):
            homeless.append(name)
        else:
            kind = next(kind for kind in ("down", "up", "alpha") if match[kind])
            pairs.setdefault(match["base"], {})[kind] = tensor
    halves = [base for base, pair in pairs.items() if not pair.keys() >= {"down", "up"}]
    if homeless or halves or not pairs:
        raise UserError(f"{path}: {_complaint([*homeless, *halves], len(tensors))}")
    changes = [_change(str(path), base, pair, settings) for base, pair in pairs.items()]
    _refuse_twice(path, [*pairs], changes)
    return Lora(str(path), _form([*tensors]), changes, metadata, left_out)


def _refuse_twice(path: Path, bases: Sequence[str], changes: Sequence[LowRank]) -> None:
    """Raises a UserError where one layer is named in two ways, which would change it twice."""
    names: dict[tuple[str, int], str] = {}
    for base, change in zip(bases, changes, strict=True):
        other = names.setdefault((change.layer, change.start), base)
        if other != base:
            raise UserError(f"{path}: {other} and {base} are the same layer; keep one of them")


def _contents(path: Path) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Tensors by name, metadata, and PEFT's settings if there are any."""
    if path.is_dir() and len(only := [*path.glob("*.safetensors")]) == 1:
        path = only[0]
    (file, *_) = weight_files(path)
    beside = file.with_name("adapter_config.json")
    settings: dict[str, Any] = {}
    if file.stem == "adapter_model" and beside.is_file():
        settings = read_json(beside)
    metadata = read_metadata(path)
    if PEFT in metadata:
        with explaining(f"{path}: can't read its {PEFT}", also=ValueError):
            told = parse_mapping(metadata[PEFT])
        settings = {name.removeprefix("transformer."): value for name, value in told.items()}
    if settings.get("use_dora"):
        raise UserError(f"{path}: it is a DoRA, and only LoRAs are supported")
    return _pickled(file) if is_pickled(file) else dict(read_tensors(path)), metadata, settings


def _pickled(file: Path) -> dict[str, Any]:
    """What a file of torch's holds by name. An alpha may be a plain number there."""
    contents = read_pickled(file)
    found = contents if isinstance(contents, dict) else {}
    nested = found.get("state_dict")  # as Lightning writes it
    found = nested if isinstance(nested, dict) else found
    return {
        str(name): torch.tensor(float(x)) if isinstance(x, int | float) else x
        for name, x in found.items()
    }


def lora_run(path: Path) -> dict[str, Any] | None:
    """The checkpoint of a LoRA run, whose metadata has path and digest of its `base`; None for what
    is none."""
    if path.is_dir() and checkpoints.find(path):
        path = checkpoints.newest(path)
    contents = checkpoints.load_if_ours(path)
    return contents if contents and contents["metadata"].get("base") else None


def _of_a_run(path: Path, contents: Mapping[str, Any]) -> Lora:
    config = build_config(contents["config"], str(path), saved=True)
    settings = config.train.adapter.choice
    if settings is None:
        raise UserError(f"{path}: is a whole model; fluxsmith lora extract makes a LoRA of one")
    changes = settings.changes_in(contents["ema"])
    return Lora(str(path), "fluxsmith", changes, _about(config, contents["metadata"]))


def _about(config: RunConfig, metadata: Mapping[str, Any]) -> dict[str, str]:
    """What a LoRA of a run says of itself, in the words of modelspec and of kohya's trainer."""
    model, dev = config.model, PRESETS["flux1-dev"]
    sizes = ("hidden_size", "num_heads", "depth", "depth_single_blocks")
    released = all(getattr(model, size) == getattr(dev, size) for size in sizes)
    kind = "dev" if model.guidance_embed else "schnell"
    source, base = metadata.get("source", {}), metadata.get("base", {})
    found = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"flux-1-{kind}/lora" if released else "flux/lora",
        "modelspec.implementation": "fluxsmith",
        "modelspec.title": str(config.name),
        **spec_of(source),
        "ss_sd_model_name": portable_name(base.get("path", "")),
    }
    if named := source.get("base_model"):
        found["base_model"] = named if isinstance(named, str) else ", ".join(named)
    captions = [caption for caption in metadata.get("captions", []) if caption]
    if len(captions) == 1:  # of all pictures, so it is what asks for them
        found["modelspec.trigger_phrase"] = captions[0]
    return found


def _complaint(names: Sequence[str], total: int) -> str:
    """Which tensors have no place in a Flux, and the likely cause."""
    if not names:
        return "holds no LoRA: there is nothing in it"
    found = (says for pattern, says in CAUSES.items() if any(re.search(pattern, n) for n in names))
    cause = next(found, "it is no LoRA of a Flux, or one half of a pair is missing")
    shown = ", ".join(names[:3])
    return f"{len(names)} of {total} tensors have no place in a Flux, such as {shown}: {cause}"


def _change(origin: str, base: str, pair: Mapping[str, Tensor], peft: Mapping[str, Any]) -> LowRank:
    """The change that a pair of tensors is, and its alpha if it has one."""
    place = place_of(base)
    assert place is not None
    for tensor in (pair["down"], pair["up"]):
        if not tensor.is_floating_point():
            raise UserError(f"{origin}: {base} is {tensor.dtype}, and must be floating-point")
    # Nothing computes in fp8.
    down, up = (t.bfloat16() if t.element_size() == 1 else t for t in (pair["down"], pair["up"]))
    if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1]:
        shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
        raise UserError(
            f"{origin}: {base} has {shapes}, which are no pair of matrices (r, n) (m, r)"
        )
    width, rows = down.shape[1], len(up)
    parts, start = place.last - place.first + 1, place.first * width
    open_end = parts_of(place.layer) in (1, 4) and place.last + 1 == parts_of(place.layer)
    if rows <= (parts - 1) * width or (rows != parts * width and not open_end):
        raise UserError(
            f"{origin}: {base} has {rows} rows, and {parts} parts of a layer {width} wide have "
            f"{parts * width}"
        )
    alpha = pair.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        raise UserError(f"{origin}: {base}.alpha has {alpha.numel()} numbers, and must have one")
    if not down.numel():
        raise UserError(f"{origin}: {base} has rank 0, so it changes nothing; leave it out")
    if place.swapped:
        up = torch.cat(up.chunk(2)[::-1])
    rank = len(down)
    if alpha is not None:
        scale = float(alpha) / rank
    elif peft:
        try:
            scale = _peft_scale(peft, base, rank)
        except (TypeError, ValueError, AttributeError, re.error) as error:
            raise UserError(f"{origin}: can't read PEFT's settings of it: {error}") from None
    else:
        scale = 1.0
    if not (math.isfinite(scale) and down.isfinite().all() and up.isfinite().all()):
        raise UserError(f"{origin}: {base} holds numbers that are not finite; it is damaged")
    return LowRank(place.layer, down, up, scale, start)


def _peft_scale(settings: Mapping[str, Any], base: str, rank: int) -> float:
    """Of a module, by PEFT's settings: alpha over the rank, or over its root."""
    module = re.sub(r"^(base_model\.model\.|transformer\.)+", "", base)
    alpha = settings.get("lora_alpha", 8)
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = value
            break
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def _form(names: Sequence[str]) -> str:
    """The format that most of a file's names are in; "another" where it is none of them."""
    counted: Counter[str] = Counter()
    for name in names:
        match = KEY.fullmatch(name)
        place = None if match is None else place_of(match["base"])
        if match is None or place is None:
            continue
        ending = name[len(match["base"]) :]
        for title, form in FORMATS.items():
            spelled = [one for one, *_ in names_of(place.layer, form)]
            if match["base"] in spelled and ending in (form.down, form.up, form.alpha):
                counted[title] += 1
    return counted.most_common(1)[0][0] if counted else "another"


def read_specs(specs: Sequence[str]) -> list[Lora]:
    """LoRAs as the command line names them, FILE or FILE:WEIGHT, their changes times the weight."""
    found = []
    for spec in specs:
        file, _, weight = spec.rpartition(":")
        if not file or Path(spec).exists():
            file, weight = spec, "1"
        try:
            factor = float(weight)
        except ValueError:
            factor = math.nan
        if not math.isfinite(factor):
            raise UserError(f"--lora {spec}: {weight} is no number; give FILE or FILE:0.8")
        lora = read_lora(file)
        changes = [replace(change, scale=factor * change.scale) for change in lora.changes]
        found.append(replace(lora, changes=changes))
    return found


def check_lora_fits(lora: Lora, network: Mapping[str, Tensor]) -> None:
    """Raises a UserError that names the first changes without a layer among a network's tensors, by
    BFL's names, and why."""
    wrong = []
    for change in lora.changes:
        weight = network.get(f"{change.layer}.weight")
        rows, width = (0, 0) if weight is None else weight.shape
        edges = {rows, *(i * width for i in range(parts_of(change.layer)))}
        if change.down.shape[1] != width or not edges >= {change.start, change.stop}:
            here = f"here ({rows}, {width})" if rows else "which is not there"
            wrong.append(f"{change.layer} ({change.stop}, {change.down.shape[1]}), {here}")
    if wrong:
        raise UserError(
            f"{lora.origin}: {len(wrong)} of its {len(lora.changes)} changes have no layer in this "
            f"network: {'; '.join(wrong[:3])}; it was made for a Flux of another size"
        )


def check_lora_file(path: Path, form: str) -> None:
    """Raises a UserError where no LoRA can be written there in this format."""
    if form not in FORMATS:
        raise UserError(f"--format {form}: must be one of {', '.join(FORMATS)}")
    if path.suffix not in SAFETENSORS:
        raise UserError(f"{path}: a LoRA is one file; let its name end with .safetensors")


def write_lora(
    path: Path,
    changes: Sequence[LowRank],
    form: str,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """A file in one of FORMATS, in `dtype` or the changes' own; where a format has no alpha and the
    scale would be rounded in a half precision, in float32. `metadata` goes along, but for what
    other formats say of ranks, and hashes of other bytes."""
    check_lora_file(path, form)
    tensors = spelled(changes, FORMATS[form])
    kept = {k: v for k, v in (metadata or {}).items() if k not in (PEFT, *KOHYA, *HASHES)}
    about = {"format": "pt", **kept, **_ranks(tensors, FORMATS[form])}
    # An alpha is a number, which must not be rounded.
    cast = {name: t.to(dtype or t.dtype) if t.ndim else t for name, t in tensors.items()}
    make_folder(path.parent, "OUT")
    write_tensors(path, cast, about)


def spelled(changes: Sequence[LowRank], form: Format) -> dict[str, Tensor]:
    """The tensors of changes under a format's names. A UserError for a layer that it has no name
    for."""
    by_layer: dict[str, list[LowRank]] = {}
    for change in changes:
        by_layer.setdefault(change.layer, []).append(change)
    found: dict[str, Tensor] = {}
    nameless = []
    for layer, own in by_layer.items():
        edges = _edges(own, changes)
        for name, first, last in names_of(layer, form):
            rows = edges[first], edges[last + 1]
            pieces = [piece for change in own if (piece := cut(change, *rows))]
            if not pieces:
                continue
            if name is None:
                nameless.append(layer)
            else:
                found |= _pair(name, joined(pieces, *rows), form)
    if nameless:
        raise UserError(
            f"the format has no name for {len(nameless)} of the layers, such as "
            f"{', '.join(nameless[:3])}; use another one"
        )
    return found


def _edges(own: Sequence[LowRank], every: Sequence[LowRank]) -> list[int]:
    """Where the parts of a layer begin, and the end of its last one."""
    parts, width = parts_of(own[0].layer), own[0].down.shape[1]
    if parts == 1:
        return [0, max(change.stop for change in own)]
    begins = [i * width for i in range(parts)]
    if parts == 3:
        return [*begins, 3 * width]
    return [*begins, 3 * width + _inner_width(every, width)]


def _inner_width(changes: Sequence[LowRank], hidden: int) -> int:
    """The MLP's, which a change of queries, keys and values alone doesn't tell: by another layer's,
    or four times the hidden width, as in every Flux that diffusers knows."""
    for change in changes:
        width = change.down.shape[1]
        if change.layer.endswith(".linear1") and change.stop > 3 * width:
            return change.stop - 3 * width
        if change.layer.endswith(".linear2"):
            return width - change.stop
        if change.layer.endswith("_mlp.0"):
            return change.stop
    return 4 * hidden


def _pair(name: str, change: LowRank, form: Format) -> dict[str, Tensor]:
    up = change.up
    if swaps(change.layer, form.spelling):
        up = torch.cat(up.chunk(2)[::-1])
    pair = {name + form.down: change.down}
    if form.alpha:
        return pair | {
            name + form.up: up,
            name + form.alpha: torch.tensor(change.scale * change.rank),
        }
    # In the weights the scale holds in every program; few read an alpha in the metadata.
    exact = change.scale * up.float()
    rounded = exact.to(up.dtype)
    return pair | {name + form.up: rounded if torch.equal(rounded.float(), exact) else exact}


def _ranks(tensors: Mapping[str, Tensor], form: Format) -> dict[str, str]:
    """What a file's metadata say of its ranks, in kohya's words or in PEFT's."""
    if form.alpha:
        dims = {len(t) for name, t in tensors.items() if name.endswith(form.down)}
        alphas = {float(t) for name, t in tensors.items() if name.endswith(form.alpha)}
        return {
            "ss_network_module": "networks.lora_flux",
            "ss_network_dim": _only(dims),
            "ss_network_alpha": _only(alphas),
        }
    if form.spelling is not DIFFUSERS:
        return {}
    ranks = {
        name.removesuffix(form.down).removeprefix(form.prefix): len(t)
        for name, t in tensors.items()
        if name.endswith(form.down)
    }
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{name}": rank for name, rank in ranks.items() if rank != usual}
    settings = {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": [*ranks],
    }
    return {PEFT: json.dumps({form.prefix + key: value for key, value in settings.items()})}


def _only(numbers: Collection[float]) -> str:
    """The number, or kohya's word for several."""
    return f"{next(iter(numbers)):g}" if len(numbers) == 1 else "Dynamic"
