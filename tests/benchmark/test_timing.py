"""Who takes turns with whom, and what is made of the seconds."""

import time

import pytest
import torch

from fluxsmith.benchmark import timing
from fluxsmith.benchmark.timing import Spread, seconds, take_turns

CPU = torch.device("cpu")


def test_the_spread_of_known_seconds():
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(median=3.0, low=2.0, high=4.0, count=5)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0, 1)


def test_turns_alternate_and_their_order_turns_round():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    found = take_turns(calls, CPU, rounds=3)
    assert "".join(order) == "abc" + "abc" + "cba" + "abc"
    assert {name: len(values) for name, values in found.items()} == {"a": 3, "b": 3, "c": 3}


def test_what_is_slow_is_called_less_often(monkeypatch):
    monkeypatch.setattr(timing, "SLOW", 0.02)
    calls = {"slow": lambda: time.sleep(0.05), "quick": lambda: None}
    found = take_turns(calls, CPU, rounds=5)
    assert {name: len(values) for name, values in found.items()} == {"slow": 3, "quick": 5}


def test_seconds_are_seconds():
    assert seconds(lambda: time.sleep(0.05), CPU) == pytest.approx(0.05, abs=0.04)
