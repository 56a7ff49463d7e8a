"""Seconds of things that are compared: they take turns, so that whatever else the machine does
meets all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

SLOW = 30.0  # seconds
ROUNDS_OF_SLOW = 3


@dataclass(frozen=True)
class Spread:
    """The median of some seconds, with the quartiles around it."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, seconds: list[float]) -> "Spread":
        if len(seconds) == 1:
            return cls(seconds[0], seconds[0], seconds[0], 1)
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, low, high, len(seconds))


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """How long `call` takes, until the device has done all of it."""
    synchronise(device)
    began = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - began


def take_turns(
    calls: Mapping[str, Callable[[], object]], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Calls each in turn, `rounds` times after an unmeasured one: seconds by name.

    Every other round goes backwards, so that nobody always follows the same neighbour. What takes
    longer than `SLOW` seconds is called in the first rounds only.
    """
    warmup = {name: seconds(call, device) for name, call in calls.items()}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        names = list(calls) if number % 2 == 0 else list(calls)[::-1]
        for name in names:
            if number < ROUNDS_OF_SLOW or warmup[name] <= SLOW:
                found[name].append(seconds(calls[name], device))
    return found


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
