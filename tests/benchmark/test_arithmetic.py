"""The count of operations against torch's own counter."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
from flux_at_random import flux_at_random, inputs, tiny_params
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fluxsmith.benchmark.arithmetic import forward_operations, training_operations

SIZES = {
    "tiny": tiny_params(),
    "guidance": tiny_params(guidance_embed=True),
    "uneven": tiny_params(depth=1, depth_single_blocks=3, out_channels=7, mlp_ratio=2.5),
}


@contextmanager
def counting():
    """Attention as plain products: torch does not count those inside its fused CPU kernel."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


@pytest.mark.parametrize("params", SIZES.values(), ids=SIZES)
def test_counts_what_torch_counts(params):
    flux = flux_at_random(params)
    x = inputs(params)
    batch, img, _ = x["img"].shape
    txt = x["txt"].shape[1]
    with counting() as forward:
        flux(**x)
    assert forward_operations(params, batch, img, txt) == forward.get_total_flops()

    x["txt"].requires_grad_()  # as a learned text encoder asks for it
    x["y"].requires_grad_()
    with counting() as training:
        flux(**x).square().sum().backward()
    assert training_operations(params, batch, img, txt) == training.get_total_flops()


def test_doubling_the_batch_doubles_the_work():
    params = replace(tiny_params(), depth=3)
    assert forward_operations(params, 4, 16, 2) == 2 * forward_operations(params, 2, 16, 2)
    assert training_operations(params, 4, 16, 2) < 3 * forward_operations(params, 4, 16, 2)
