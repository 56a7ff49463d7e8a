"""A network's sizes from its weights, and what to say of weights that don't fit."""

from dataclasses import fields

import torch
from torch import Tensor

from fluxsmith.errors import UserError
from fluxsmith.model.flux import PRESETS, Flux, FluxParams

# The rotary axes are in no tensor's shape. These are FLUX.1's and the lesson's, by head size.
AXES = {sum(preset.axes_dim): preset.axes_dim for preset in PRESETS.values()}


def params_of(
    network: dict[str, Tensor], origin: str, axes_dim: tuple[int, ...] | None = None
) -> FluxParams:
    """The sizes of weights under BFL's names; `axes_dim` where it is not FLUX.1's."""
    refuse_others(network, origin)
    try:
        return _params_of(network, axes_dim)
    except KeyError as error:
        raise UserError(f"{origin} is not a whole Flux: it lacks {error}") from None
    except ValueError as error:
        raise UserError(f"{origin} is not a Flux that can be read: {error}") from None


def _params_of(network: dict[str, Tensor], axes_dim: tuple[int, ...] | None) -> FluxParams:
    hidden, in_channels = network["img_in.weight"].shape
    head = _head_width(network)
    if head is None:
        raise KeyError("query_norm.scale")
    if axes_dim is None and head not in AXES:
        raise ValueError(
            f"its heads are {head} wide, and how rows and columns share them is in no tensor; give "
            f"a config with model.axes_dim (--config)"
        )
    depth = _depth(network, "double_blocks")
    out_channels = network["final_layer.linear.weight"].shape[0]
    return FluxParams(
        in_channels=in_channels,
        vec_in_dim=network["vector_in.in_layer.weight"].shape[1],
        context_in_dim=network["txt_in.weight"].shape[1],
        hidden_size=hidden,
        mlp_ratio=_ratio(network[_first(network, "img_mlp.0.weight", "linear2.weight")], hidden),
        num_heads=hidden // head,
        depth=depth,
        depth_single_blocks=_depth(network, "single_blocks"),
        axes_dim=axes_dim or AXES[head],
        theta=10_000,
        qkv_bias="double_blocks.0.img_attn.qkv.bias" in network or depth == 0,
        guidance_embed="guidance_in.in_layer.weight" in network,
        out_channels=None if out_channels == in_channels else out_channels,
    )


def check_fits(network: dict[str, Tensor], params: FluxParams, origin: str) -> None:
    """Raises a UserError that names the first tensors which don't fit, and the likely cause."""
    with torch.device("meta"):
        own = Flux(params).state_dict()
    missing, extra = sorted(own.keys() - network.keys()), sorted(network.keys() - own.keys())
    wrong = [n for n in own if n in network and own[n].shape != network[n].shape]
    if not (missing or extra or wrong):
        return
    refuse_others(network, origin)
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors missing, first {', '.join(missing[:3])}")
    if extra:
        parts.append(f"{len(extra)} unknown, first {', '.join(extra[:3])}")
    if wrong:
        shown = [f"{n} {tuple(network[n].shape)}, here {tuple(own[n].shape)}" for n in wrong[:3]]
        parts.append(f"{len(wrong)} of another shape, first {'; '.join(shown)}")
    raise UserError(
        f"{origin} doesn't fit this model: {'. '.join(parts)}. {_cause(network, params, extra)}"
    )


def refuse_others(network: dict[str, Tensor], origin: str) -> None:
    """Raises a UserError for files of other kinds, whose tensors tell what they are."""
    names = list(network)
    if any("lora" in name.lower() for name in names):
        raise UserError(
            f"{origin} is a LoRA, not a model: it holds {names[0]}; give the model that it belongs "
            f"to (LoRAs are not supported yet)"
        )
    if any(name.startswith(("decoder.", "encoder.conv_in")) for name in names):
        raise UserError(f"{origin} is an autoencoder, not a network; --autoencoder takes it")
    if any(name.startswith(("text_model.", "encoder.block.")) for name in names):
        raise UserError(f"{origin} is a text encoder, not a network; --clip or --t5 takes it")
    scaled = [name for name in names if name.endswith(("scale_weight", "scaled_fp8"))]
    if scaled:
        raise UserError(
            f"{origin} holds fp8 weights with scales of their own ({scaled[0]}); give the bf16 "
            f"file, or an fp8 one without scales"
        )
    if "img_in.weight" not in network:
        first = ", ".join(names[:3]) or "nothing"
        raise UserError(f"{origin} holds no Flux: there is no img_in.weight, but {first}")


def _cause(network: dict[str, Tensor], params: FluxParams, extra: list[str]) -> str:
    """What most likely happened."""
    head = _head_width(network)
    if head is not None and head != sum(params.axes_dim):
        return (
            f"Its heads are {head} wide, here {sum(params.axes_dim)}: it was made with another "
            f"model.axes_dim"
        )
    try:
        found = params_of(network, "it", params.axes_dim)
    except UserError:
        return "Is it a whole file, and of a Flux?"
    if found.guidance_embed != params.guidance_embed:
        return (
            "It is a variant with a guidance input, as dev: use a config with guidance_embed=true"
            if found.guidance_embed
            else "It has no guidance input, as schnell: use a config with guidance_embed=false"
        )
    if found.in_channels != params.in_channels:
        if found.in_channels > (found.out_channels or found.in_channels):
            return "It takes more than the noisy image, as FLUX.1 Fill, Canny, Depth and Redux do"
        return "Are model.patch_size, data.channels and the autoencoder those of the weights?"
    differing = [f.name for f in fields(found) if getattr(found, f.name) != getattr(params, f.name)]
    shown = ", ".join(f"{n} {getattr(found, n)}, here {getattr(params, n)}" for n in differing[:3])
    return f"It was made with {shown}" if shown else "Is it another model's?"


def _head_width(network: dict[str, Tensor]) -> int | None:
    return next(
        (t.shape[0] for name, t in network.items() if name.endswith("query_norm.scale")), None
    )


def _first(network: dict[str, Tensor], *endings: str) -> str:
    """The first name with one of these endings, the earlier endings preferred."""
    for ending in endings:
        for name in network:
            if name.endswith(ending):
                return name
    raise KeyError(endings[0])


def _ratio(weight: Tensor, hidden: int) -> float:
    """mlp_ratio, from an MLP's (inner, hidden) or a linear2's (hidden, hidden + inner)."""
    rows, columns = weight.shape
    return rows / hidden if columns == hidden else (columns - hidden) / hidden


def _depth(network: dict[str, Tensor], stack: str) -> int:
    return len({name.split(".")[1] for name in network if name.startswith(f"{stack}.")})
