"""The network's layers under diffusers' names: FluxTransformer2DModel computes the same with them.

One layer of ours may be several of theirs, one after the other along the output.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fluxsmith.storage.mapped import release

OUTSIDE: dict[str, tuple[str, ...]] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
DUAL: dict[str, tuple[str, ...]] = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
SINGLE: dict[str, tuple[str, ...]] = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
SWAPPED = "final_layer.adaLN_modulation."  # (shift, scale) here, (scale, shift) there


def to_diffusers(network: dict[str, Tensor]) -> dict[str, Tensor]:
    """BFL's names to diffusers'."""
    hidden = network["img_in.weight"].shape[0]
    renamed: dict[str, Tensor] = {}
    for ours, theirs in _names(depth(network, "double_blocks"), depth(network, "single_blocks")):
        if ours in network:
            tensor = _swapped(ours, network[ours])
            parts = tensor.tensor_split([hidden * i for i in range(1, len(theirs))])
            renamed |= zip(theirs, parts, strict=True)
    return renamed


def from_diffusers(transformer: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' names to BFL's, the exact inverse; names that are unknown or lack a part of the
    layer stay as they are, so that `check_fits` names them. What is joined gives back the memory
    that it is mapped into."""
    left = dict(transformer)
    renamed: dict[str, Tensor] = {}
    stacks = "transformer_blocks", "single_transformer_blocks"
    for ours, theirs in _names(*(depth(left, stack) for stack in stacks)):
        if left.keys() >= set(theirs):
            parts = [left.pop(name) for name in theirs]
            renamed[ours] = _swapped(ours, torch.cat(parts) if len(parts) > 1 else parts[0])
            if len(parts) > 1:
                for part in parts:
                    release(part)
    return renamed | left


def depth(names: Iterable[str], stack: str) -> int:
    """The number of blocks in a stack."""
    return len({name.split(".")[1] for name in names if name.startswith(f"{stack}.")})


def _names(dual: int, single: int) -> Iterator[tuple[str, list[str]]]:
    """Each tensor of ours with its tensors in diffusers."""
    stacks = [("", "", OUTSIDE)]
    stacks += [(f"double_blocks.{i}.", f"transformer_blocks.{i}.", DUAL) for i in range(dual)]
    stacks += [
        (f"single_blocks.{i}.", f"single_transformer_blocks.{i}.", SINGLE) for i in range(single)
    ]
    for ours, theirs, layers in stacks:
        for layer, names in layers.items():
            norm = layer.endswith(("query_norm", "key_norm"))
            for kind in ("weight",) if norm else ("weight", "bias"):
                own = f"{ours}{layer}.{'scale' if norm else kind}"
                yield own, [f"{theirs}{name}.{kind}" for name in names]


def _swapped(ours: str, tensor: Tensor) -> Tensor:
    return torch.cat(tensor.chunk(2)[::-1]) if ours.startswith(SWAPPED) else tensor
