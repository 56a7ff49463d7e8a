"""The tables say what was found, whole, on a terminal of 80 columns."""

import io

import pytest
from rich.console import Console

from fluxsmith.benchmark.table import tables


def spread(seconds):
    return {"median": seconds, "low": 0.9 * seconds, "high": 1.1 * seconds, "count": 5}


@pytest.fixture
def shown():
    sides = {"ours": spread(0.5), "diffusers-compiled": spread(1.25), "lesson": spread(1234.0)}
    found = {
        "machine": {
            "device": "a processor", "threads": 2, "dtype": "float32", "memory_bandwidth": 8e10,
            "peaks": {"torch": 2e11, "oneDNN": 4e11},
        },
        "operations": 10**11,
        "training": sides,
        "sampling": {"guidance 2": sides},
        "peak_memory": {"train": {"ours": 2**30}, "sample": {"ours": 2**29}},
        "first_step": {"diffusers-compiled": 5.0},
        "startup": {"fluxsmith --help": 0.1},
    }  # fmt: skip
    text = io.StringIO()
    console = Console(file=text, width=80)
    for sheet in tables(found, batch=64, pictures=16):
        console.print(sheet)
    return text.getvalue()


def test_nothing_is_cut_off(shown):
    assert "…" not in shown
    for name in ("diffusers-compiled", "lesson", "first step, compiling and all", "--help"):
        assert name in shown


def line_of(shown, side):
    return next(line for line in shown.splitlines() if line.strip().startswith(side)).split()


def test_ratios_rates_and_shares_are_those_of_the_medians(shown):
    name, seconds, *_, rate, times, _ = line_of(shown, "diffusers-compiled")
    assert (name, seconds, rate, times) == ("diffusers-compiled", "1.250", "51.2", "2.50")
    assert line_of(shown, "lesson")[-2] == "2468.00"
    assert "100% of torch's and 50% of oneDNN's" in shown
    assert "32.0" in shown.partition("drawing")[2]  # images/s of 16 in half a second
    assert "1,024" in shown
    assert "512" in shown
