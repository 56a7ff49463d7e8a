"""How a run is spread over the ranks that torchrun starts, and what saves memory on each."""

from typing import Literal

from pydantic import field_validator

from fluxsmith.config.types import Count, Section


class ParallelConfig(Section):
    shard: Count = 1
    """Ranks that share one copy of weights, average and optimiser (FSDP2); 1: each has its own."""
    pieces: Count | None = None
    """Parts of a batch: the run is the same on up to so many ranks; one a rank by default."""
    checkpoint_activations: Literal["none", "blocks", "selective"] = "none"
    """Compute again what backward needs of blocks, or (selective) all but their products."""

    @field_validator("pieces")
    @classmethod
    def _is_power_of_two(cls, pieces: int | None) -> int | None:
        if pieces is not None and pieces & (pieces - 1):
            below = 1 << (pieces.bit_length() - 1)
            raise ValueError(
                f"parallel.pieces={pieces}: must be a power of two; use {below} or {2 * below}"
            )
        return pieces
