"""Our names and diffusers', there and back. That the names are right, tests/model proves: diffusers
computes the same with the renamed weights."""

import pytest
import torch
from flux_at_random import flux_at_random, tiny_params

from fluxsmith.interop.diffusers_names import from_diffusers, to_diffusers

SIZES = {
    "plain": tiny_params(),
    "guidance": tiny_params(guidance_embed=True),
    "uneven": tiny_params(
        hidden_size=60, num_heads=3, axes_dim=(2, 8, 10), depth=1, depth_single_blocks=3
    ),
    "dual only": tiny_params(depth_single_blocks=0),
}


@pytest.mark.parametrize("params", SIZES.values(), ids=SIZES)
def test_there_and_back_is_the_identity(params):
    weights = flux_at_random(params).state_dict()
    back = from_diffusers(to_diffusers(weights))
    assert back.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(back[name], tensor), name


def test_what_is_unknown_or_lacks_a_part_stays_to_be_complained_about():
    weights = to_diffusers(flux_at_random(tiny_params()).state_dict()) | {"odd": torch.ones(1)}
    del weights["transformer_blocks.1.attn.to_k.weight"]
    assert from_diffusers(weights).keys() >= {"odd", "transformer_blocks.1.attn.to_q.weight"}
