"""A benchmark gives each side its turn, at work in a process of its own, and says what it found."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fluxsmith.cli.benchmark.bench_table import tables
from fluxsmith.cli.benchmark.sides import SIDES, at_work
from fluxsmith.errors import UserError
from fluxsmith.kernels import timing
from fluxsmith.kernels.timing import spread, take_turns, turns

CPU = torch.device("cpu")
TINY = Path(__file__).parents[2] / "configs/image/digits/tiny.yaml"
SMALL = ["train.batch_size=2", "train.compile=false", "device=cpu"]
DIFFUSERS_LACKS = r"model\.mlp_ratio=2\.0: diffusers' Flux knows mlp_ratio=4\.0"


@pytest.mark.slow
def test_ctrl_c_prints_what_was_measured_so_far(toy_file, tmp_path):
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # children inherit it, and keep to it
        pytest.skip("SIGINT is ignored here, as for what a shell runs in the background")
    figures, log = tmp_path / "figures.json", tmp_path / "log"
    command = [sys.executable, "-m", "fluxsmith", "bench", str(toy_file), *SMALL]
    with open(log, "w") as stream:
        process = subprocess.Popen(
            [*command, "--rounds", "5000", "--json", str(figures)],
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        deadline = time.monotonic() + 600
        while log.read_text().count(" left") < 2:  # by its second line of turns, each has had some
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(60) == 130
    text = log.read_text()
    assert " left" in text
    assert "training, 2 images" in text
    assert "Traceback" not in text
    assert json.loads(figures.read_text())["seconds"]["training"]["ours"]["count"] > 0


def test_diffusers_has_our_network_and_learns(toy):
    pytest.importorskip("diffusers")
    config = toy()
    ours, theirs = SIDES["ours"](config, CPU), SIDES["diffusers"](config, CPU)
    count = sum(p.numel() for p in ours.pipeline.network.parameters())
    assert sum(p.numel() for p in theirs.model.parameters()) == count
    assert theirs.text.shape[1] == 1  # one-word captions make one token

    before = [p.detach().clone() for p in theirs.model.parameters()]
    theirs.train_step()
    pairs = zip(before, theirs.model.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs)
    for side in (ours, theirs):
        for guidance in (1.0, 2.0):
            pictures = side.sample(["1", "2"], 2, guidance)
            assert pictures.shape == (2, config.data.channels, *[config.data.image_size] * 2)
            assert pictures.isfinite().all()


@pytest.mark.slow
def test_a_side_in_another_process_works_and_says_its_memory(capfd):
    sizes = ["model.hidden_size=32", "model.num_heads=2", "model.depth=1", "model.axes_dim=[4,6,6]"]
    with at_work("ours", TINY, [*SMALL, *sizes]) as side:
        assert side("sample", ["1", "2"], 2, 2.0) > 2**20
        assert side("train_step") > 2**20
    pytest.importorskip("diffusers")
    with (
        pytest.raises(UserError, match=DIFFUSERS_LACKS),
        at_work("diffusers", TINY, ["model.mlp_ratio=2"]),
    ):
        pass
    assert "Traceback" not in capfd.readouterr().err


def test_the_spread_of_known_seconds():
    known = {"median": 3.0, "low": 2.0, "high": 4.0, "count": 5}
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0]) == known
    assert spread([2.0]) == {"median": 2.0, "low": 2.0, "high": 2.0, "count": 1}


def clock(monkeypatch, takes: dict[str, float]) -> tuple[list[str], dict]:
    """The order of the calls, each of which takes so many seconds by the only clock."""
    now, order = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def call(name: str) -> None:
        order.append(name)
        now[0] += takes[name]

    return order, {name: (lambda name=name: call(name)) for name in takes}


def test_turns_alternate_and_their_order_turns_round(monkeypatch):
    order, calls = clock(monkeypatch, {"a": 1.0, "b": 2.0, "c": 3.0})
    assert take_turns(calls, CPU, rounds=3) == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [3.0] * 3}
    assert "".join(order) == "abc" + "abc" + "cba" + "abc"


def test_what_is_slow_is_called_less_often_and_the_time_left_is_known(monkeypatch):
    _, calls = clock(monkeypatch, {"slow": 40.0, "quick": 1.0, "rare": 1.0})
    after = list(turns(calls, CPU, {"slow": 5, "quick": 5, "rare": 1}))
    assert after[5][2] == 2 * 40.0 + 4 * 1.0  # when the first of the five rounds is over
    assert {key: len(taken) for key, taken, _ in after} == {"slow": 3, "quick": 5, "rare": 1}


def test_the_tables_hold_what_was_found_whole_in_80_columns():
    sides = {
        name: {"median": s, "low": 0.9 * s, "high": 1.1 * s, "count": 5}
        for name, s in {"ours": 0.5, "diffusers-compiled": 1.25, "lesson": 1234.0}.items()
    }
    found = {
        "device": "a processor", "threads": 2, "dtype": "float32", "step_flops": 10**11,
        "product_flops": 10**11, "startup": {"fluxsmith --help": 0.1},
        "first_step": {"diffusers-compiled": 5.0},
        "peak_memory": {"ours": {"training": 2**30, "drawing": 2**29}},
        "seconds": {
            "products": {"torch": {"median": 0.5}, "oneDNN": {"median": 0.25}},
            "training": sides,
            "drawing": sides,
        },
    }  # fmt: skip
    text = io.StringIO()
    for sheet in tables(found, batch=64, pictures=16):
        Console(file=text, width=80).print(sheet)
    shown = text.getvalue()
    assert "…" not in shown
    for part in (
        "first step, compiling and all: diffusers-compiled", "--help", "1,024", "512",
        "by torch: 200 GFLOP/s; ours reaches 100%", "by oneDNN: 400 GFLOP/s; ours reaches 50%",
    ):  # fmt: skip
        assert part in shown
    training, drawing = (
        next(line.split() for line in part.splitlines() if "diffusers-compiled" in line)
        for part in shown.split("drawing, 16 images")
    )
    assert training == [
        "diffusers-compiled",
        "1.250",
        "1.125",
        "to",
        "1.375",
        "51.2",
        "2.50",
        "times",
    ]
    assert drawing[-3] == "12.8"
