"""What a network computes with on this machine's CPU: last bits depend on it, and speed does."""

import torch

from fluxsmith import processor
from fluxsmith.model import onednn, passes


def computing(device: torch.device) -> str:
    """The libraries that do what matters, as in "oneDNN and C++"."""
    if device.type != "cpu":
        return "torch"
    own = "" if isinstance(passes.library(), str) else " and C++"
    return onednn.library() + own


def slower_because() -> str:
    """Why C++ of our own, which this processor could run, isn't there; nothing where it is, or
    where there is nothing to be done about it."""
    found = passes.library()
    return found if isinstance(found, str) and processor.has_avx512() else ""
