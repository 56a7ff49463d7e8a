"""Seconds of things that are compared, and what the machine itself can do. They take turns, so that
whatever else the machine does meets all of them alike."""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import torch

from fluxsmith.kernels.cpu import features, onednn

SLOW = 30.0  # seconds
ROUNDS_OF_SLOW = 3

Key = TypeVar("Key", bound=Hashable)
Calls = Mapping[Key, Callable[[], object]]


def spread(seconds: list[float]) -> dict[str, float]:
    """The median of some seconds, the quartiles around it, and how many they are."""
    low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
    return {"median": median, "low": low, "high": high, "count": len(seconds)}


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """How long `call` takes, until the device has done all of it."""
    synchronise(device)
    began = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - began


def turns(
    calls: Calls[Key], device: torch.device, rounds: Mapping[Key, int]
) -> Iterator[tuple[Key, list[float], float]]:
    """Calls each once unmeasured, then in turn, each in as many rounds as given. Yields after every
    call whose it was, its measured seconds so far, and those that all the rest will take.

    Every other round goes backwards, so that nobody always follows the same neighbour. What takes
    longer than `SLOW` seconds is called in the first rounds only.
    """
    takes: dict[Key, float] = {}
    found: dict[Key, list[float]] = {key: [] for key in calls}
    for key, call in calls.items():
        takes[key] = seconds(call, device)
        yield key, [], sum(rounds[known] * took for known, took in takes.items())
    order = [
        key
        for number in range(max(rounds.values()))
        for key in (list(calls) if number % 2 == 0 else list(calls)[::-1])
        if number < (rounds[key] if takes[key] <= SLOW else min(ROUNDS_OF_SLOW, rounds[key]))
    ]
    left = sum(takes[key] for key in order)
    for key in order:
        found[key].append(seconds(calls[key], device))
        left -= takes[key]
        yield key, found[key], left


def take_turns(calls: Calls[Key], device: torch.device, rounds: int) -> dict[Key, list[float]]:
    """The measured seconds of each."""
    return {key: taken for key, taken, _ in turns(calls, device, dict.fromkeys(calls, rounds))}


def synchronise(device: torch.device) -> None:
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else features.name()


def matrix_products(device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """A large square product, by each library that may take it: the best a network can reach."""
    size = _size(device)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    calls: dict[str, Callable[[], object]] = {"torch": lambda: torch.mm(a, b, out=out)}
    if (device.type, dtype) == ("cpu", torch.float32) and onednn.worth_it(a, b):
        calls["oneDNN"] = lambda: onednn.product(a, b)
    return calls


def product_flops(device: torch.device) -> int:
    """Of each of `matrix_products`."""
    return 2 * _size(device) ** 3


def _size(device: torch.device) -> int:
    return 8192 if device.type == "cuda" else 2048
