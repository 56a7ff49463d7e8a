"""FLUX.1's autoencoder from files, and its names in diffusers: ae.safetensors or a vae/ folder."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxsmith.autoencoder.flux_ae import SCALE, SHIFT, FluxAutoencoder
from fluxsmith.autoencoder.network import GROUPS, AutoencoderNetwork, empty_network, params_of
from fluxsmith.errors import UserError
from fluxsmith.tensorfile import read_json, read_metadata, read_tensors

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


def read_autoencoder(
    path: str | Path, *, tile_size: int = 0, max_batch: int = 0
) -> FluxAutoencoder:
    """From BFL's file, from a diffusers vae/ folder, or from a folder with vae/ in it."""
    path = Path(path)
    if (path / "vae").is_dir():
        path = path / "vae"
    weights = read_tensors(path)
    settings = _settings(path)
    if any(".down_blocks." in name for name in weights):
        weights = from_diffusers(weights, str(path))
    network = _filled(weights, str(path))
    return FluxAutoencoder(network, **settings, tile_size=tile_size, max_batch=max_batch)


def file_metadata(autoencoder: FluxAutoencoder) -> dict[str, str]:
    """What a single file must say beside its weights."""
    return {"shift_factor": repr(autoencoder.shift), "scaling_factor": repr(autoencoder.scale)}


def diffusers_config(autoencoder: FluxAutoencoder) -> dict[str, Any]:
    """The config.json of diffusers' AutoencoderKL."""
    params = autoencoder.network.params
    levels = len(params.ch_mult)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [params.ch * m for m in params.ch_mult],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "force_upcast": True,
        "in_channels": params.in_channels,
        "out_channels": params.in_channels,
        "latent_channels": params.z_channels,
        "layers_per_block": params.num_res_blocks,
        "mid_block_add_attention": True,
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


def from_diffusers(weights: dict[str, Tensor], origin: str) -> dict[str, Tensor]:
    """Weights of diffusers' AutoencoderKL under BFL's names."""
    if "quant_conv.weight" in weights:
        raise UserError(
            f"{origin} is an autoencoder with quant_conv, such as Stable Diffusion's; FLUX.1's has "
            f"none: give FLUX.1's ae.safetensors or vae/ folder"
        )
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


def _settings(path: Path) -> dict[str, float]:
    """Shift and scale: those that stand beside the weights, else FLUX.1's."""
    if path.is_dir() and (path / "config.json").is_file():
        found = read_json(path / "config.json")
        groups = found.get("norm_num_groups", GROUPS)
        if groups != GROUPS:
            raise UserError(f"{path} has group norms of {groups} groups; FLUX.1's have {GROUPS}")
    else:
        found = dict(read_metadata(path))
    try:
        shift, scale = found.get("shift_factor"), found.get("scaling_factor")
        return {
            "shift": SHIFT if shift is None else float(shift),
            "scale": SCALE if scale is None else float(scale),
        }
    except (TypeError, ValueError):
        raise UserError(f"{path}: shift_factor and scaling_factor must be numbers") from None


def _filled(weights: dict[str, Tensor], origin: str) -> AutoencoderNetwork:
    """A network with these weights, in float32; a UserError says what doesn't fit."""
    try:
        network = empty_network(params_of(weights))
    except (KeyError, ValueError) as error:
        reason = f"it lacks {error.args[0]}" if isinstance(error, KeyError) else error
        raise UserError(
            f"{origin} is not FLUX.1's autoencoder ({reason}); give its ae.safetensors or its vae/ "
            f"folder"
        ) from None
    own = network.state_dict()
    wrong = sorted(own.keys() ^ weights.keys()) or sorted(
        name for name in own if own[name].shape != weights[name].shape
    )
    if wrong:
        raise UserError(
            f"{origin} is not FLUX.1's autoencoder: {len(wrong)} tensors don't fit, first "
            f"{', '.join(wrong[:3])}; give its ae.safetensors or vae/ folder"
        )
    network.load_state_dict({name: t.to(torch.float32) for name, t in weights.items()}, assign=True)
    return network
