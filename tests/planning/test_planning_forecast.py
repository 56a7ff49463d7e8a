"""Forecasts: what fits, what to change, what ranks share; and a described machine's options."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import needs_gpu

from fluxsmith.cli.entry import main
from fluxsmith.errors import UserError
from fluxsmith.planning.calibration import calibrate, extrapolated, measured_sizes
from fluxsmith.planning.forecast import Planner
from fluxsmith.planning.machine import Machine, quantity
from fluxsmith.planning.outline import Outline
from fluxsmith.planning.sharing import Sharing, Sizes
from fluxsmith.planning.trace import Allocations, traced
from fluxsmith.training.division import smaller_parts

SIZES = Sizes(blocks=[100, 100, 40], root=60, whole=20)


def planner(config, memory, **machine):
    described = {"name": "described", "devices": 1, "gpu": False, "here": False} | machine
    return Planner(Outline.of(config), Machine(memory=memory, **described))


@pytest.mark.slow
def test_what_does_not_fit_is_told_what_to_change_first(toy):
    config = toy("train.batch_size=64")
    needed = sum(planner(config, 2**40).memory(config).values())
    assert planner(config, needed).forecast().advice == ""
    found = planner(config, needed - 1).forecast()
    assert found.advice.startswith("train.accumulate=2: ")
    tight = planner(toy("train.batch_size=1"), 2**20).forecast()
    assert tight.advice.startswith("a smaller model") and tight.largest_batch == 0


@pytest.mark.slow
def test_this_machine_is_measured(toy):
    found = planner(toy(), 2**40, here=True).forecast()
    assert found.seconds > 0 and found.how == "steps with 1+1 blocks"


def test_the_largest_batch_fits_and_one_more_does_not(toy):
    config, memory = toy("train.batch_size=32"), 2**26
    made = planner(config, memory)
    largest = made.forecast().largest_batch
    assert largest > 32

    def needed(size):
        return sum(made.memory(toy(f"train.batch_size={size}")).values())

    assert needed(largest) <= memory * 1.01
    assert needed(largest + largest // 50) > memory


def test_shares_of_all_ranks_are_the_whole(toy):
    config = toy("train.batch_size=64")
    outline = Outline.of(config)
    held = traced(outline, config)
    alone, sizes = held.at_most(), planner(config, 1).sizes
    assert Sharing(4, 1, 4, 1).on_a_rank(held, sizes) == alone
    shared = Sharing(ranks=4, shard=4, bytes=4, passes=1).on_a_rank(held, sizes)
    for part in ("weights", "optimiser", "average"):
        beside = alone[part] * sizes.whole / (sizes.cut + sizes.whole)  # whole on every rank
        assert 4 * (shared[part] - beside) == pytest.approx(alone[part] - beside, abs=8)


def test_what_is_cut_may_be_most_at_another_moment():
    """Many gradients, then an activation that is larger than what is cut of them."""
    held = Allocations()
    gradient, activation = torch.zeros(100), torch.zeros(60)
    with held:
        held.mark("gradients", [gradient])
        held.events.append((0, -400))
        held.mark_others("batch")
        activation.zero_()
    assert held.at_most()["gradients"] == 400
    assert held.at_most({"gradients": 0.25})["activations"] == 240


def test_what_a_ring_sends():
    """By hand: 300 numbers of four bytes, cut in two, two copies of the model; 20 beside it."""
    sharing = Sharing(ranks=4, shard=2, bytes=4, passes=1)
    assert sharing.within(SIZES) == 2 * 1200 / 2 + 1200 / 2  # two gathers, one scattered sum
    assert sharing.between(SIZES) == 2 * 600 / 2 + 2 * 80 * 3 / 4
    assert Sharing(1, 1, 4, 1).within(SIZES) == Sharing(1, 1, 4, 1).between(SIZES) == 0


def test_further_blocks_take_what_further_blocks_took():
    sizes = measured_sizes((6, 12))
    seconds = {(dual, single): 1 + 0.5 * dual + 0.25 * single for dual, single in sizes}
    assert extrapolated(seconds, (6, 12)) == pytest.approx(1 + 3 + 3)
    assert measured_sizes((1, 3)) == [(1, 3)]
    assert measured_sizes((0, 40)) == [(0, 1), (0, 6)]


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("80GiB", "B", 80 * 2**30), ("1.5 GB", "B", 1.5e9), ("450GB/s", "B/s", 450e9),
        ("400Gb/s", "B/s", 50e9), ("989TFLOPS", "FLOPS", 989e12),
    ],
)  # fmt: skip
def test_quantities(text, unit, value):
    assert quantity("--x", text, unit) == value


@pytest.mark.parametrize("text", ["80", "80XiB", "0GiB", "-1GiB", "80GB/s", "GiB", "80 GiB more"])
def test_what_is_no_quantity_is_named(text):
    with pytest.raises(UserError, match=r"--memory .*such as 80GiB"):
        quantity("--memory", text, "B")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--devices", "0"), "--devices 0"),
        (("--devices", "3", "--memory", "1GiB"), "3 ranks: must be a power of two"),
        (("--devices", "16", "--memory", "1GiB"), "train.batch_size=8"),
        (("--devices", "2", "--memory", "1GiB", "parallel.shard=4"), "parallel.shard=4"),
        (("--memory", "80 apples"), "--memory 80 apples"),
        (("--rate", "80GiB"), "--rate 80GiB"),
        (("--rate", "1TFLOPS"), "say its --memory too"),
        (("--reached", "0.3"), "--reached 0.3: is a share of --rate"),
        (("--reached", "1.5", "--rate", "1TFLOPS", "--memory", "1GiB"), "--reached 1.5"),
        (("--json", "/dev/null/plan.json"), "--json"),
    ],
)
def test_a_mistake_is_a_line(toy_file, capsys, given, told):
    with pytest.raises(SystemExit) as stop:
        main(["plan", str(toy_file), *given])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_a_described_machine_is_planned_for_without_data_and_files(toy_file, tmp_path, capsys):
    file = tmp_path / "plan.json"
    with pytest.raises(SystemExit) as stop:
        main(
            ["plan", str(toy_file), "--devices", "2", "--memory", "1GiB", "--rate", "1TFLOPS",
             "--bandwidth", "1GB/s", "data.source=folder", f"data.path={tmp_path / 'none'}",
             "--json", str(file)]
        )  # fmt: skip
    assert not stop.value.code
    assert "captions are taken to have 64 tokens" in capsys.readouterr().out
    found = json.loads(file.read_text())
    within, between = found["traffic"]["within"], found["traffic"]["between"]
    assert within == 0
    assert found["seconds"] == pytest.approx(found["flops"] / 2 / 0.5e12 + between / 1e9)
    assert found["mfu"] == pytest.approx(found["flops"] / (found["seconds"] * 2e12))


def test_what_is_cut_finer_is_cut_in_each_piece(toy):
    """Of a batch of 32 in 8 pieces, each has 4 pictures: in two parts, or in four."""
    config = toy("train.batch_size=32")
    assert smaller_parts(config, 8) == [16, 32]
    assert smaller_parts(config, 1) == [2, 4, 8, 16, 32]
    assert smaller_parts(toy("train.batch_size=32", "train.accumulate=8"), 1) == [16, 32]


@pytest.mark.slow
def test_a_checkpoint_of_a_cut_network_is_gathered_on_the_first_rank(toy):
    """Its share alone where it is written in shares; and nothing on a GPU, for the host has it."""
    often = "train.checkpoint_every=2"

    def saving(*settings, gpu=False):
        config = toy(often, "parallel.shard=2", *settings)
        made = planner(config, 2**40, devices=2, gpu=gpu)
        return made.saving(made.memory(config)), 16 * (made.sizes.cut + made.sizes.whole)

    gathered, whole = saving("train.checkpoint_format=file")
    assert gathered == whole == saving()[0]
    share, _ = saving("train.checkpoint_format=sharded")
    assert whole / 2 < share < whole  # the text encoder is not cut
    assert saving(gpu=True)[0] == 0


def test_a_run_with_cuda_graphs_is_planned_for_anywhere(toy):
    config = toy("train.cuda_graphs=true")
    assert planner(config, 2**40).memory(config) == planner(toy(), 2**40).memory(toy())


def test_batches_are_made_where_they_are_asked_for(toy):
    assert Outline.of(toy()).batch(["3"], torch.device("meta")).images.is_meta


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_is_measured(toy):
    config = toy()
    assert calibrate(Outline.of(config), config, torch.device("cuda")).seconds > 0


LITTLE = """
import resource, sys
from pathlib import Path
import torch
from fluxsmith.config import read_config
from fluxsmith.planning.expectation import calibrated_with_room
from fluxsmith.planning.outline import Outline

config = read_config(Path(sys.argv[1]), ["model.hidden_size=1024", "model.num_heads=16"])
outline, cpu = Outline.of(config), torch.device("cpu")
assert calibrated_with_room(outline, config, cpu, 2**60) is None  # it is not tried
torch.ones(2**20) @ torch.ones(2**20)  # threads have their stacks
has = int(dict(x.split(":") for x in open("/proc/self/status"))["VmData"].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (has + 2**28, has + 2**28))
assert calibrated_with_room(outline, config, cpu, 0) is None  # it is given up
torch.ones(2**20)  # there is room again
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_what_there_is_no_room_to_try_is_not_measured_and_ends_nothing(toy_file):
    command = [sys.executable, "-c", LITTLE, str(toy_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
