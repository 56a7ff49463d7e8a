"""The machine that a plan is made for: this one, or one that is described."""

import re
from dataclasses import dataclass

from fluxsmith.errors import UserError

PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
EXAMPLES = {"B": "80GiB", "B/s": "450GB/s or 400Gb/s", "FLOPS": "989TFLOPS"}


@dataclass(frozen=True)
class Machine:
    """Equal devices that train one model together, a rank on each."""

    name: str
    devices: int
    memory: int  # bytes of each
    gpu: bool
    here: bool  # whether it is of the kind of this machine, where steps can be measured
    rate: float | None = None  # FLOP/s of each in large products of the dtype that it trains in
    reached: float = 0.5  # the share of `rate` that a step reaches on one device alone
    bandwidth: float | None = None  # bytes/s that each sends while it receives as many
    network: float | None = None  # the same between groups of `parallel.shard` devices


def quantity(option: str, text: str, unit: str) -> float:
    """What an option says in a unit: B (bytes), B/s (b/s are bits) or FLOPS, with a prefix from k
    to P or Ki to Ti; a UserError names the option."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]*?)(b/s|b|flops)", text, re.IGNORECASE)
    scale = (PREFIXES | BINARY).get(found[2].lower()) if found else None
    if not found or scale is None or found[3].lower() != unit.lower() or not float(found[1]):
        raise UserError(
            f"{option} {text}: must be a number above 0 with a unit, such as {EXAMPLES[unit]}"
        )
    return float(found[1]) * scale / (8 if found[3].startswith("b/") else 1)
