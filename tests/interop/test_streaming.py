"""Blocks that come and go compute what they compute when they stay."""

import pytest
import torch
from interop_models import flux_at_random, inputs, tiny_params

from fluxsmith.model.streaming import stream_blocks

CPU = torch.device("cpu")


@torch.no_grad()
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_a_streamed_network_computes_as_one_that_was_converted(stored):
    params = tiny_params(guidance_embed=True)
    streamed = flux_at_random(params).to(stored)
    whole = flux_at_random(params).to(stored).to(torch.float32)
    stream_blocks(streamed, CPU, torch.float32)
    x = inputs(params)
    for _ in range(2):
        assert torch.equal(streamed(**x), whole(**x))
    blocks = [*streamed.double_blocks, *streamed.single_blocks]
    assert {p.dtype for block in blocks for p in block.parameters()} == {stored}


@torch.no_grad()
def test_blocks_go_home_after_an_error_too():
    params = tiny_params()
    network = flux_at_random(params).to(torch.bfloat16)
    stream_blocks(network, CPU, torch.float32)

    def interrupted(*_):
        raise RuntimeError("out of memory")

    network.double_blocks[1].img_mlp.register_forward_hook(interrupted)
    with pytest.raises(RuntimeError, match="out of memory"):
        network(**inputs(params))
    blocks = [*network.double_blocks, *network.single_blocks]
    assert {p.dtype for block in blocks for p in block.parameters()} == {torch.bfloat16}
