"""The network's layers under diffusers' names: FluxTransformer2DModel computes the same with them.

One layer of ours may be several of theirs, one after the other along the output.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fluxsmith.errors import UserError

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
SWAPPED = "final_layer.adaLN_modulation.1"  # (shift, scale) here, (scale, shift) there


def to_diffusers(network: dict[str, Tensor]) -> dict[str, Tensor]:
    """BFL's names to diffusers'."""
    hidden = network["img_in.weight"].shape[0]
    renamed: dict[str, Tensor] = {}
    for ours, theirs in _layers(_count(network, "double_blocks"), _count(network, "single_blocks")):
        for kind, their_kind in _kinds(ours):
            tensor = network.get(f"{ours}.{kind}")
            if tensor is None:
                continue
            if ours == SWAPPED:
                tensor = torch.cat(tensor.chunk(2)[::-1])
            parts = tensor.tensor_split([hidden * i for i in range(1, len(theirs))])
            for name, part in zip(theirs, parts, strict=True):
                renamed[f"{name}.{their_kind}"] = part
    return renamed


def from_diffusers(transformer: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' names to BFL's, exactly the other way; names that it doesn't know stay as they
    are, for whoever fits the weights into a network to complain about."""
    left = dict(transformer)
    renamed: dict[str, Tensor] = {}
    depths = _count(left, "transformer_blocks"), _count(left, "single_transformer_blocks")
    for ours, theirs in _layers(*depths):
        for kind, their_kind in _kinds(ours):
            parts = [left.pop(f"{name}.{their_kind}", None) for name in theirs]
            there = [part for part in parts if part is not None]
            if not there:
                continue
            if len(there) < len(parts):
                lacking = [n for n, part in zip(theirs, parts, strict=True) if part is None]
                raise UserError(
                    f"the diffusers weights lack {lacking[0]}.{their_kind} beside its neighbours; "
                    f"fetch all their shards"
                )
            tensor = torch.cat(there) if len(there) > 1 else there[0]
            renamed[f"{ours}.{kind}"] = (
                torch.cat(tensor.chunk(2)[::-1]) if ours == SWAPPED else tensor
            )
    return renamed | left


def _layers(dual: int, single: int) -> Iterator[tuple[str, list[str]]]:
    """Each layer of ours with its layers in diffusers."""
    for ours, theirs in OUTSIDE.items():
        yield ours, list(theirs)
    stacks = (
        (dual, "double_blocks", "transformer_blocks", DUAL),
        (single, "single_blocks", "single_transformer_blocks", SINGLE),
    )
    for depth, our_stack, their_stack, names in stacks:
        for i in range(depth):
            for ours, theirs in names.items():
                yield f"{our_stack}.{i}.{ours}", [f"{their_stack}.{i}.{name}" for name in theirs]


def _kinds(layer: str) -> tuple[tuple[str, str], ...]:
    """The parameters of a layer, ours and theirs."""
    if layer.endswith(("query_norm", "key_norm")):
        return (("scale", "weight"),)
    return (("weight", "weight"), ("bias", "bias"))


def _count(names: dict[str, Tensor], stack: str) -> int:
    """Blocks in a stack."""
    parts = (name.split(".") for name in names if name.startswith(f"{stack}."))
    return 1 + max((int(part[1]) for part in parts if part[1].isdecimal()), default=-1)
