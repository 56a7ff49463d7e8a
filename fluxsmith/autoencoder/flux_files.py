"""FLUX.1's autoencoder from files, and its names in diffusers: ae.safetensors or a vae/ folder."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from textwrap import shorten
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from fluxsmith.autoencoder.flux_ae import SCALE, SHIFT, FluxAutoencoder
from fluxsmith.autoencoder.network import GROUPS, AutoencoderNetwork, AutoencoderParams
from fluxsmith.device import DTYPES, shapes_only
from fluxsmith.errors import UserError

# Reads a model of a kind, here "autoencoder", out of a file, a folder or a hub id: its tensors, and
# the settings that are stored with them.
Reader = Callable[[str, str], tuple[dict[str, Tensor], Mapping[str, Any]]]
Count = Annotated[int, Interval(ge=0, le=10**9)]

# Part of BFL's name, and of diffusers'. Levels of the decoder are counted from the other end there.
_NAMES = (
    (".down.{}.block.", ".down_blocks.{}.resnets."),
    (".down.{}.downsample.", ".down_blocks.{}.downsamplers.0."),
    (".up.{}.block.", ".up_blocks.{}.resnets."),
    (".up.{}.upsample.", ".up_blocks.{}.upsamplers.0."),
    (".mid.block_1.", ".mid_block.resnets.0."),
    (".mid.block_2.", ".mid_block.resnets.1."),
    (".mid.attn_1.norm.", ".mid_block.attentions.0.group_norm."),
    (".mid.attn_1.proj_out.", ".mid_block.attentions.0.to_out.0."),
    (".mid.attn_1.{}.", ".mid_block.attentions.0.to_{}."),
    (".nin_shortcut.", ".conv_shortcut."),
    (".norm_out.", ".conv_norm_out."),
)


@dataclass(frozen=True)
class Settings:
    LOCAL: ClassVar = ("weights", "tile_size", "max_batch", "cache")

    weights: Annotated[str, "Its weights: ae.safetensors, a diffusers folder, or a hub id."]
    tile_size: Annotated[
        Count, "Larger pictures are coded in overlapping tiles of so many pixels; 0: never."
    ] = 0
    max_batch: Annotated[Count, "Pictures coded at once, to save memory; 0: the whole batch."] = 0
    latents: Annotated[
        Literal["bfloat16", "float32"], "What latents are rounded to in training, cached or not."
    ] = "bfloat16"
    cache: Annotated[
        str, "Folder of latents that `fluxsmith encode` makes; auto: the usual one; or none."
    ] = "none"


def build(
    settings: Settings, device: torch.device | str, read: Reader, image_channels: int = 3
) -> FluxAutoencoder:
    """From BFL's file or one that holds other models too, from a diffusers vae/ folder, or from a
    folder or hub id with vae/ in it. Its weights decide the number of image channels."""
    path = settings.weights
    weights, beside = read(path, "autoencoder")
    groups = beside.get("norm_num_groups", GROUPS)
    if groups != GROUPS:
        raise UserError(f"{path} has group norms of {groups} groups; FLUX.1's have {GROUPS}")
    if any(".down_blocks." in name for name in weights):
        weights = from_diffusers(weights)
    try:
        with shapes_only():
            network = AutoencoderNetwork(infer_params(weights))
        float32 = {name: tensor.to(device, torch.float32) for name, tensor in weights.items()}
        network.load_state_dict(float32, assign=True)
        shift, scale = (
            default if beside.get(key) is None else float(beside[key])
            for key, default in (("shift_factor", SHIFT), ("scaling_factor", SCALE))
        )
    except (LookupError, ArithmeticError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{path} doesn't hold FLUX.1's autoencoder ({shorten(str(error), 300)}); give its "
            f"ae.safetensors or vae/ folder"
        ) from None
    dtype = DTYPES[settings.latents]
    return FluxAutoencoder(network, shift, scale, settings.tile_size, settings.max_batch, dtype)


def diffusers_config(autoencoder: FluxAutoencoder) -> dict[str, Any]:
    """The config.json of diffusers' AutoencoderKL."""
    params = autoencoder.network.params
    levels = len(params.ch_mult)
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [params.ch * m for m in params.ch_mult],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "in_channels": params.in_channels,
        "out_channels": params.in_channels,
        "latent_channels": params.z_channels,
        "layers_per_block": params.num_res_blocks,
        "norm_num_groups": GROUPS,
        "sample_size": 1024,
        "scaling_factor": autoencoder.scale,
        "shift_factor": autoencoder.shift,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    }


def to_diffusers(network: AutoencoderNetwork) -> dict[str, Tensor]:
    """The weights under diffusers' names; its attention has matrices for our 1x1 convolutions."""
    levels = len(network.params.ch_mult)
    renamed = {}
    for name, tensor in network.state_dict().items():
        theirs = _other_end(_renamed(name, _NAMES), levels)
        renamed[theirs] = tensor.flatten(1) if _is_projection(theirs) else tensor
    return renamed


def from_diffusers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of diffusers' AutoencoderKL under BFL's names."""
    levels = len({name.split(".")[2] for name in weights if ".down_blocks." in name})
    back = tuple((theirs, ours) for ours, theirs in _NAMES)
    renamed = {}
    for name, tensor in weights.items():
        ours = _renamed(_other_end(name, levels), back)
        renamed[ours] = tensor[..., None, None] if _is_projection(name) else tensor
    return renamed


def _renamed(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for before, after in pairs:
        pattern = re.escape(before).replace(r"\{\}", r"(\w+)")
        name = re.sub(pattern, after.replace("{}", r"\1"), name)
    return name


def _other_end(name: str, levels: int) -> str:
    return re.sub(r"\.up_blocks\.(\d+)\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.", name)


def _is_projection(name: str) -> bool:
    return ".attentions." in name and ".to_" in name and name.endswith("weight")


def infer_params(weights: dict[str, Tensor]) -> AutoencoderParams:
    """The sizes of weights under BFL's names; raises various errors for other weights."""
    first = weights["encoder.conv_in.weight"]  # (ch, in_channels, 3, 3)
    ch = first.shape[0]
    levels = {name.split(".")[2] for name in weights if name.startswith("encoder.down.")}
    blocks = {name.split(".")[4] for name in weights if name.startswith("encoder.down.0.block.")}
    widths = [weights[f"encoder.down.{i}.block.0.conv1.weight"] for i in range(len(levels))]
    return AutoencoderParams(
        in_channels=first.shape[1],
        ch=ch,
        ch_mult=tuple(weight.shape[0] // ch for weight in widths),
        num_res_blocks=len(blocks),
        z_channels=weights["decoder.conv_in.weight"].shape[1],
    )
