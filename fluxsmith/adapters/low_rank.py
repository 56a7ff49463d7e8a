"""Changes of low rank to a layer's weight, as LoRA files hold them: cut to some of its rows, joined
into one, found in a difference. Cutting and joining are exact."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """scale · up @ down, added to some rows of a weight (Hu et al. 2022, "LoRA", sec. 4.1)."""

    layer: str  # its name in the network
    down: Tensor  # (rank, in)
    up: Tensor  # (rows, rank)
    scale: float = 1.0  # alpha / rank
    start: int = 0  # the first of the weight's rows that change

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def stop(self) -> int:
        return self.start + len(self.up)

    def change(self) -> Tensor:
        """What is added to the rows, (rows, in), in float32."""
        return self.scale * (self.up.float() @ self.down.float())

    def norm(self) -> float:
        """The Frobenius norm of the change, by products of rank x rank."""
        down, up = self.down.double(), self.up.double()
        return abs(self.scale) * float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt())


def cut(change: LowRank, start: int, stop: int) -> LowRank | None:
    """Its part in rows start to stop, without the ranks that are only elsewhere; None where it
    changes none of these rows."""
    start, stop = max(start, change.start), min(stop, change.stop)
    if start >= stop:
        return None
    up = change.up[start - change.start : stop - change.start]
    used = (up != 0).any(0) | (change.up == 0).all(0)
    if not used.any():
        return None
    return replace(change, down=change.down[used], up=up[:, used], start=start)


def joined(changes: Sequence[LowRank], start: int, stop: int) -> LowRank:
    """The sum of changes of one layer as a change of rows start to stop. Downs stand one beneath
    the other, and ups side by side in the rows of each; equal downs are one, so that joining what
    was cut gives back what it was cut from."""
    scale = changes[0].scale
    if any(change.scale != scale for change in changes):
        changes = [
            replace(change, down=change.down.float(), up=change.scale * change.up.float())
            for change in changes
        ]
        scale = 1.0
    groups: list[tuple[Tensor, list[LowRank]]] = []
    for change in changes:
        for down, members in groups:
            if down.shape == change.down.shape and torch.equal(down, change.down):
                members.append(change)
                break
        else:
            groups.append((change.down, [change]))
    ups = []
    for down, members in groups:
        up = members[0].up.new_zeros(stop - start, len(down))
        for change in members:
            up[change.start - start : change.stop - start] += change.up
        ups.append(up)
    downs = torch.cat([down for down, _ in groups])
    return LowRank(changes[0].layer, downs, torch.cat(ups, dim=1), scale, start)


def nearest(layer: str, difference: Tensor, rank: int) -> LowRank:
    """The change of this rank that is nearest to a difference of weights (out, in): its largest
    singular values (Eckart & Young 1936), by a randomised decomposition with power iterations
    (Halko et al. 2011, algorithms 4.4 and 5.1), whose draws are always the same."""
    rank = min(rank, *difference.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        most = min(2 * rank + 16, *difference.shape)
        u, s, v = torch.svd_lowrank(difference.float(), q=most, niter=8)
    root = s[:rank].sqrt()
    return LowRank(layer, (v[:, :rank] * root).T.contiguous(), u[:, :rank] * root)
