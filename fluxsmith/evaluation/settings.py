"""How samples are drawn for an evaluation."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    num_samples: int = 1000
    steps: int = 20
    guidance: float = 2.0
    solver: str = "euler"
    seed: int = 0
