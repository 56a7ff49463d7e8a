"""Blocks that keep less for their backward pass, and compute the rest again (Chen et al. 2016,
"Training Deep Nets with Sublinear Memory Cost")."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

# What costs most to compute again: products of matrices and attention, torch's and our own.
PRODUCTS = {
    "aten": "mm addmm bmm baddbmm linear _scaled_dot_product_flash_attention"
    " _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention"
    " _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_attention_math",
    "fluxsmith": "gelu_linear attention",
}


def checkpoint_activations(blocks: Iterable[nn.Module], kind: str) -> None:
    """From now on blocks keep their inputs alone (`blocks`), or also what products in them give
    (`selective`)."""
    if kind == "none":
        return
    contexts = {"context_fn": partial(create_selective_checkpoint_contexts, _policy)}
    settings: dict[str, Any] = contexts if kind == "selective" else {}
    for block in blocks:
        draws = any(getattr(module, "dropout", 0) for module in block.modules())
        block.forward = partial(_forward, block, settings | {"preserve_rng_state": draws})


def _forward(block: nn.Module, settings: dict[str, Any], *given: Any) -> Any:
    forward = type(block).forward  # whatever accelerates the block
    if not torch.is_grad_enabled():
        return forward(block, *given)
    return checkpoint(forward, block, *given, use_reentrant=False, **settings)


def _policy(context: Any, op: Any, *given: Any, **named: Any) -> CheckpointPolicy:
    namespace, _, name = op._schema.name.partition("::")
    kept = name in PRODUCTS.get(namespace, "").split()
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
