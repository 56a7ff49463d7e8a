"""A network's sizes from its weights, and what to say of weights that don't fit."""

import re
from collections.abc import Sequence
from dataclasses import fields
from textwrap import shorten

from torch import Tensor

from fluxsmith.device import shapes_only
from fluxsmith.errors import UserError
from fluxsmith.interop.diffusers_names import depth
from fluxsmith.model.flux import PRESETS, Flux, FluxParams

# No tensor's shape tells the rotary axes. These are FLUX.1's and the lesson's, by head size.
AXES = {sum(preset.axes_dim): preset.axes_dim for preset in PRESETS.values()}

# Files of other kinds: a pattern of the names of their tensors, and what to do with them.
OTHER_FILES = {
    "lora": "is a LoRA, not a model: give the model that it belongs to, and this with --lora, or "
    "merge them first (fluxsmith lora merge)",
    r"^(decoder\.|encoder\.conv_in)": "is an autoencoder, not a network: --autoencoder takes it",
    r"^(text_model\.|encoder\.block\.)": "is a text encoder, not a network: use --clip or --t5",
}


def infer_params(
    network: dict[str, Tensor], origin: str, axes_dim: Sequence[int] | None = None
) -> FluxParams:
    """The sizes of weights under BFL's names; `axes_dim` if they are not FLUX.1's."""
    refuse_others(network, origin)
    try:
        found = _infer(network, axes_dim)
    except KeyError as error:
        raise UserError(f"{origin} is not a whole Flux: it lacks {error}") from None
    except (ValueError, IndexError, TypeError, RuntimeError) as error:
        raise UserError(f"{origin} is not a Flux that can be read: {error}") from None
    given, taken = found.out_channels or found.in_channels, found.in_channels
    if given < taken <= 2 * given:
        raise UserError(
            f"{origin}: takes {taken} features of an image token and gives {given}, as FLUX.1 "
            f"Canny and Depth do, which can't be drawn with here"
        )
    return found


def _infer(network: dict[str, Tensor], axes_dim: Sequence[int] | None) -> FluxParams:
    hidden, in_channels = network["img_in.weight"].shape
    head = _ending_with(network, "query_norm.scale").shape[0]
    if axes_dim is None and head not in AXES:
        raise ValueError(
            f"its heads are {head} wide, and no tensor tells how rows and columns share them; give "
            f"a config with model.axes_dim (--config)"
        )
    dual = depth(network, "double_blocks")
    if dual:  # (inner, hidden)
        inner = _ending_with(network, "img_mlp.0.weight").shape[0]
    else:  # (hidden, hidden + inner)
        inner = _ending_with(network, "linear2.weight").shape[1] - hidden
    out_channels = network["final_layer.linear.weight"].shape[0]
    return FluxParams(
        in_channels=in_channels,
        vec_in_dim=network["vector_in.in_layer.weight"].shape[1],
        context_in_dim=network["txt_in.weight"].shape[1],
        hidden_size=hidden,
        mlp_ratio=inner / hidden,
        num_heads=hidden // head,
        depth=dual,
        depth_single_blocks=depth(network, "single_blocks"),
        axes_dim=AXES[head] if axes_dim is None else tuple(axes_dim),
        theta=10_000,
        qkv_bias="double_blocks.0.img_attn.qkv.bias" in network or dual == 0,
        guidance_embed="guidance_in.in_layer.weight" in network,
        out_channels=None if out_channels == in_channels else out_channels,
    )


def check_fits(network: dict[str, Tensor], params: FluxParams, origin: str) -> None:
    """Raises a UserError that names the first tensors which don't fit, and the likely cause."""
    try:
        with shapes_only():
            Flux(params).load_state_dict(network, assign=True)
    except RuntimeError as error:
        refuse_others(network, origin)
        found, cause = shorten(str(error), 300), _cause(network, params)
        raise UserError(f"{origin} doesn't fit this model: {found}. {cause}") from None


def refuse_others(network: dict[str, Tensor], origin: str) -> None:
    """Raises a UserError for files of other kinds, recognised by the names of their tensors."""
    for pattern, says in OTHER_FILES.items():
        for name in network:
            if re.search(pattern, name, re.IGNORECASE):
                raise UserError(f"{origin} {says}; it holds {name}")
    if "img_in.weight" not in network:
        first = ", ".join([*network][:3]) or "nothing"
        raise UserError(f"{origin} holds no Flux: there is no img_in.weight, but {first}")


def _cause(network: dict[str, Tensor], params: FluxParams) -> str:
    """The likely reason why the weights don't fit."""
    try:
        found = infer_params(network, "the file", params.axes_dim)
    except UserError as error:
        return str(error)
    if found.guidance_embed != params.guidance_embed:
        return (
            f"Use a config with guidance_embed={str(found.guidance_embed).lower()}: variants like "
            f"dev have a guidance input, those like schnell have none"
        )
    if (found.out_channels is None) != (params.out_channels is None):
        return (
            "A network that takes more features of an image token than it gives fills holes, as "
            "FLUX.1 Fill does (model.conditioning=fill), or takes other pictures"
        )
    if found.in_channels != params.in_channels:
        return "Are model.patch_size, data.channels and the autoencoder those of the weights?"
    differing = [f.name for f in fields(found) if getattr(found, f.name) != getattr(params, f.name)]
    shown = ", ".join(f"{n} {getattr(found, n)}, here {getattr(params, n)}" for n in differing[:3])
    return f"It was made with {shown}" if shown else "Is it another model's?"


def _ending_with(network: dict[str, Tensor], ending: str) -> Tensor:
    """The first tensor whose name ends so; a KeyError if there is none."""
    for name, tensor in network.items():
        if name.endswith(ending):
            return tensor
    raise KeyError(ending)
