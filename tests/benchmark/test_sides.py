"""The opponents do the same work at the same size."""

import pytest
import torch

from fluxsmith.benchmark.sides import build
from fluxsmith.errors import UserError

pytest.importorskip("diffusers")
CPU = torch.device("cpu")


def test_diffusers_has_our_network_and_learns(toy):
    config = toy()
    ours, theirs = build("ours", config, CPU), build("diffusers", config, CPU)
    count = sum(p.numel() for p in ours.pipeline.network.parameters())
    assert sum(p.numel() for p in theirs.model.parameters()) == count
    assert theirs.text.shape[1] == 1  # one-word captions make one token

    before = [p.detach().clone() for p in theirs.model.parameters()]
    theirs.train_step()
    ours.train_step()
    changed = [
        not torch.equal(a, b) for a, b in zip(before, theirs.model.parameters(), strict=True)
    ]
    assert all(changed)
    for side in (ours, theirs):
        for guidance in (1.0, 2.0):
            pictures = side.sample(["1", "2"], 2, guidance)
            assert pictures.shape == (2, config.data.channels, *[config.data.image_size] * 2)
            assert pictures.isfinite().all()


def test_a_size_that_diffusers_lacks_is_named(toy):
    with pytest.raises(UserError, match=r"model\.mlp_ratio=2\.0: diffusers' Flux has only 4\.0"):
        build("diffusers", toy("model.mlp_ratio=2"), CPU)
