"""The pictures of a report, drawn elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Gallery:
    """All uint8, one or three channels; what is empty is left out of the page."""

    samples: Sequence[tuple[str, Tensor]] = ()  # caption, (k, c, h, w)
    trajectories: Sequence[tuple[str, Sequence[float], Sequence[Tensor]]] = ()
    """Caption, times from 1 to 0, and a frame (c, h, w) at each."""
    neighbours: Sequence[tuple[Tensor, Tensor, float, str]] = ()
    """A sample (c, h, w), its nearest training image, their distance, the sample's caption."""
