"""The arithmetic of a forward pass and of a training step, against PyTorch's own count."""

from contextlib import contextmanager

import pytest
from flux_at_random import flux_at_random, inputs, tiny_params
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fluxsmith.model.flops import forward_flops, training_flops

SIZES = {
    "plain": tiny_params(),
    "guided": tiny_params(guidance_embed=True),
    "single": tiny_params(depth=0),
    "uneven": tiny_params(depth=1, depth_single_blocks=3, out_channels=7, mlp_ratio=2.5),
}


@contextmanager
def counting():
    """Attention as plain products: torch does not count those inside its fused CPU kernel."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


@pytest.mark.parametrize("params", SIZES.values(), ids=SIZES)
def test_it_is_what_pytorch_counts(params):
    flux = flux_at_random(params)
    x = inputs(params)
    batch, img, _ = x["img"].shape
    txt = x["txt"].shape[1]
    with counting() as forward:
        flux(**x)
    assert batch * forward_flops(params, txt, img) == forward.get_total_flops()

    x["txt"].requires_grad_()  # as a learned text encoder asks for it
    x["y"].requires_grad_()
    with counting() as training:
        flux(**x).square().sum().backward()
    assert batch * training_flops(params, txt, img) == training.get_total_flops()
