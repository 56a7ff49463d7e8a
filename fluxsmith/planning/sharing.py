"""What each of several ranks holds and sends, by arithmetic from what one alone holds.

The engine's rules (`parallel/`): weights, gradients, moments and average of the network are cut
over `parallel.shard` ranks, which gather a block's weights while it computes; what is learned
beside the network is whole everywhere. A rank sends what a ring needs at least: of n bytes among r
ranks (r - 1)/r n for a gather or a scattered sum, and twice that for a sum that all get.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fluxsmith.planning.trace import Allocations

FLOAT32, BFLOAT16 = 4, 2


@dataclass(frozen=True)
class Sizes:
    """The parameters of a model, by how they are cut."""

    blocks: Sequence[int]  # of each block of the network
    root: int  # of the network beside its blocks
    whole: int  # beside the network

    @classmethod
    def of(cls, model: nn.Module, network: nn.Module, blocks: Sequence[nn.Module]) -> "Sizes":
        each = [_count(block) for block in blocks]
        return cls(each, _count(network) - sum(each), _count(model) - _count(network))

    @property
    def cut(self) -> int:
        return sum(self.blocks) + self.root


@dataclass(frozen=True)
class Sharing:
    """How ranks share a model."""

    ranks: int
    shard: int
    bytes: int  # of a number while it computes
    passes: int  # a rank's micro-batches in a step

    @property
    def copies(self) -> int:
        return self.ranks // self.shard

    def on_a_rank(self, alone: Allocations, sizes: Sizes) -> dict[str, int]:
        """The bytes of each part, from what one rank holds that has all of the model."""
        if self.shard == 1:
            return alone.at_most()
        share = (sizes.cut / self.shard + sizes.whole) / (sizes.cut + sizes.whole)
        parts = ("weights", "gradients", "optimiser", "average")
        found = alone.at_most(dict.fromkeys(parts, share) | {"cast weights": 0.0})
        largest = max(sizes.blocks, default=0)
        computing = 2 * largest + sizes.root + largest  # this block, the next, and its gradient
        found["gathered"] = self.bytes * computing + FLOAT32 * largest  # which is summed in float32
        if self.passes > 1:  # micro-batches are added up before they are summed over ranks
            found["gathered"] += FLOAT32 * sizes.cut
        return found

    def within(self, sizes: Sizes) -> float:
        """Bytes that each rank sends in a step to those with which it shares a copy."""
        gathers = 2 * self.passes * self.bytes * sizes.cut  # forward, and again backward
        return (self.shard - 1) / self.shard * (gathers + FLOAT32 * sizes.cut)

    def between(self, sizes: Sizes) -> float:
        """Bytes that each sends to those that have the same share."""
        found = 2 * (self.copies - 1) / self.copies * FLOAT32 * sizes.cut / self.shard
        return found + 2 * (self.ranks - 1) / self.ranks * FLOAT32 * sizes.whole


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
