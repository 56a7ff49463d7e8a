"""Offloaded blocks compute what they compute when they stay on the device."""

import pytest
import torch
from flux_at_random import flux_at_random, inputs, tiny_params

from fluxsmith.kernels.offload import offload_blocks

CPU = torch.device("cpu")


@torch.no_grad()
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_an_offloaded_network_computes_as_one_that_was_converted_and_keeps_its_weights(stored):
    params = tiny_params(guidance_embed=True)
    offloaded = flux_at_random(params).to(stored)
    whole = flux_at_random(params).to(stored).to(torch.float32)
    offload_blocks(offloaded, CPU, torch.float32)
    x = inputs(params)
    for _ in range(2):
        assert torch.equal(offloaded(**x), whole(**x))
    assert {p.dtype for block in offloaded.blocks for p in block.parameters()} == {stored}

    def interrupted(*_):
        raise RuntimeError("out of memory")

    offloaded.double_blocks[1].img_mlp.register_forward_hook(interrupted)
    with pytest.raises(RuntimeError, match="out of memory"):
        offloaded(**x)
    assert {p.dtype for block in offloaded.blocks for p in block.parameters()} == {stored}
