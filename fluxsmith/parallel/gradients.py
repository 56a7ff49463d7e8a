"""The gradient of a batch from those of its pieces, which several ranks may have computed."""

from collections.abc import Sequence

from torch import Tensor, nn

from fluxsmith.parallel.ranks import Ranks
from fluxsmith.parallel.shares import Whole
from fluxsmith.parallel.sums import Tree, sum_over_ranks


class Gradients:
    """Adds up what backward passes leave in `grad`, in the tree of the batch's pieces.

    A rank computes pieces that follow each other, and the ranks' sums are added at the end. Where a
    cut model has to be exact, ranks take turns, and each round is added over them by itself.
    """

    def __init__(
        self, ranks: Ranks, pieces: int, parts: int, parameters: Sequence[nn.Parameter],
        held: Whole, exact: bool,
    ) -> None:  # fmt: skip
        self.ranks, self.held, self.exact, self.parameters = ranks, held, exact, parameters
        self.parts = parts  # micro-batches of a piece
        in_turn, each = range(ranks.rank, pieces, ranks.size), pieces // ranks.size
        in_a_row = range(ranks.rank * each, (ranks.rank + 1) * each)
        self.own = in_turn if held.sums_each_piece else in_a_row
        self._tree, self._done = Tree(), 0
        self._announce()

    def add(self) -> None:
        """A micro-batch's gradients are there."""
        self._done += 1
        if self._done % self.parts == 0:
            self.held.collect()
            if self.held.sums_each_piece:
                self._sum_over_ranks()
            self._tree.add([p.grad for p in self.parameters])
            for p in self.parameters:
                p.grad = None
        self._announce()

    def finish(self) -> None:
        """The gradients become those of the batch."""
        for p, gradient in zip(self.parameters, self._tree.total(), strict=True):
            p.grad = gradient
        if not self.held.sums_each_piece:
            self._sum_over_ranks()
        self._done = 0
        self._announce()

    def gather(self, rows: Tensor) -> Tensor:
        """(k, b) of this rank's images -> (k, b) of the whole batch, in its order."""
        found = self.ranks.gather(rows)  # (ranks, k, b)
        if self.held.sums_each_piece:  # (ranks, k, rounds, b) -> (k, rounds, ranks, b)
            return found.unflatten(2, (len(self.own), -1)).permute(1, 2, 0, 3).flatten(1)
        return found.transpose(0, 1).flatten(1)

    def _announce(self) -> None:
        """Whether the next backward pass is one after which a cut model's gradients are added."""
        last = self.parts if self.held.sums_each_piece else self.parts * len(self.own)
        self.held.sync((self._done + 1) % last == 0)

    def _sum_over_ranks(self) -> None:
        if self.ranks.size > 1:
            whole = [p.grad for p in self.held.uncut(self.parameters) if p.grad is not None]
            with self.ranks.waiting("the sum of gradients"):
                sum_over_ranks(whole, None, self.exact)
