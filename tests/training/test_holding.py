"""A network that is cut before any rank has it whole is the network of that seed."""

import torch
from helpers import same

from fluxsmith.parallel.sharding import cut
from fluxsmith.pipeline import Pipeline
from fluxsmith.training.holding import DrawnInShares


def test_shares_that_are_drawn_tensor_by_tensor_are_those_of_the_whole_network(toy):
    config = toy("seed=3")
    whole = dict(Pipeline.build(config).network.named_parameters())
    for rank in range(4):
        drawing = DrawnInShares(lambda x, rank=rank: cut(x, 4, rank))
        network = Pipeline.build(config, empty=True, inside=drawing).network
        weights = [p for p in network.parameters() if p.ndim > 1]
        assert all(p.is_meta for p in weights)
        found = drawing.shares(dict(network.named_parameters()))
        assert same(found, {name: cut(p.detach(), 4, rank) for name, p in whole.items()})
    assert torch.get_default_device().type == "cpu"
