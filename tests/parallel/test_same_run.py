"""A run is the same run on any number of ranks, to the bit: weights, average, optimiser, records,
sample grids and the checkpoint files that hold them."""

import os
import random
import signal
from pathlib import Path

import pytest
from made_pictures import as_shards, items
from parallel.launching import Ranks, write_config
from parallel.same import STATE, assert_equal, assert_same_checkpoints, same_states
from reliability.comparing import left_behind

from fluxsmith.storage import checkpoint as checkpoints

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

ROOT = Path(__file__).parents[2]


def run(folder, size, *command, **sections):
    """What a run on so many ranks leaves behind."""
    write_config(folder, **sections)
    ranks = Ranks(folder, size, "train", "toy.yaml", *command)
    assert ranks.wait(300) == [0] * size, ranks.told()
    return left_behind(folder / "run")


@pytest.mark.slow
def test_snapshots_are_kept_by_the_first_rank(tmp_path):
    for size in 1, 2:
        run(tmp_path / str(size), size, train={"snapshots": 3}, parallel={"pieces": 2})
    one, two = (checkpoints.find(tmp_path / n / "run" / "snapshots") for n in "12")
    assert [step for step, _ in one] == [step for step, _ in two] == [1, 2, 6]
    for (_, a), (_, b) in zip(one, two, strict=True):
        for name, tensor in checkpoints.load(a)["ema"].items():
            assert_equal(checkpoints.load(b)["ema"][name], tensor, name)


def beside_checkpoints(left):
    return {name: what for name, what in left.items() if not name.endswith(".pt")}


def lines(file):
    return file.read_text().splitlines()


def test_two_ranks_leave_the_bytes_of_one_replicated_or_sharded(tmp_path):
    one = run(tmp_path / "one", 1)
    assert {"diffusion-6.pt", "sample-6.png", "metrics"} <= one.keys()
    assert run(tmp_path / "two", 2) == one
    sharded = run(tmp_path / "sharded", 2, parallel={"shard": 2})
    assert same_states(one, sharded)
    assert_same_checkpoints(tmp_path / "one" / "run", tmp_path / "sharded" / "run")


def test_a_run_goes_on_on_another_number_of_ranks(tmp_path):
    """From a file to shares and back to a file."""
    one = run(tmp_path / "one", 1)
    folder = tmp_path / "other"
    run(folder, 1, "train.steps=2")
    shares = ("parallel.shard=2", "train.checkpoint_format=sharded")
    run(folder, 2, "train.steps=4", "--resume", "auto", *shares)
    assert (folder / "run" / "diffusion-4" / "manifest.json").is_file()
    other = run(folder, 1, "--resume", "auto")
    states = {name: one[name] for name in one if name.endswith(".pt")}
    assert same_states(one, other | states)  # but for the checkpoints, which have other forms
    assert_same_checkpoints(tmp_path / "one" / "run", folder / "run")


@pytest.mark.slow
def test_a_lora_is_the_same_on_two_ranks(tmp_path):
    """Through dropout, and with nothing but itself in its file."""
    run(tmp_path / "base", 1, train={"sample_every": 0})
    adapter = {"kind": "lora", "rank": 2, "dropout": 0.2}
    lora = {"adapter": adapter, "init_from": str(tmp_path / "base" / "run")}
    one = run(tmp_path / "one", 1, train=lora)
    assert run(tmp_path / "two", 2, train=lora) == one
    held = checkpoints.load(tmp_path / "two" / "run" / "diffusion-6.pt")["model"]
    assert held and all(name.endswith(("lora_A", "lora_B")) for name in held)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("accumulation", {"train": {"accumulate": 8}}),
        ("lengths", {"data": {"source": "colored-digits", "image_size": 8}}),
        ("stream", {}),
        ("activations", {"parallel": {"checkpoint_activations": "selective"}}),
    ],
)
def test_one_two_and_four_ranks_leave_the_same(tmp_path, kind, settings):
    if kind == "stream":  # of shards that end where batches don't, one picture of them spoilt
        made = items(58, size=8)
        made[7] = (made[7][0][:40], made[7][1])
        shards = as_shards(tmp_path / "data", made, 5)
        stream = {"source": "webdataset", "image_size": 8, "workers": 2, "shuffle_buffer": 7}
        settings = {"data": stream | {"path": shards, "max_bad": 0.5}}
    one = run(tmp_path / "1", 1, **settings)
    spread = settings.get("parallel", {})
    for size, shard in ((2, 1), (4, 1), (2, 2), (4, 2), (4, 4)):
        folder = tmp_path / f"{size}-{shard}"
        changed = settings | {"parallel": spread | {"shard": shard}}
        assert same_states(one, run(folder, size, **changed)), folder
        assert_same_checkpoints(tmp_path / "1" / "run", folder / "run")


@pytest.mark.slow
def test_many_steps_and_resumes_of_a_shipped_config(tmp_path):
    """200 steps of digits/tiny (RANK_STEPS=40 for less) on 1, 2 and 4 ranks, and through resumes
    from 1 to 2 to 4 to 1, cut at random steps."""
    steps = int(os.environ.get("RANK_STEPS", "200"))
    settings = ("device=cpu", "train.deterministic=true", "parallel.pieces=4",
                "train.sample_every=100", f"train.checkpoint_every={steps // 2}",
                "train.keep_checkpoints=0", "evaluate.every=100")  # fmt: skip
    config = ROOT / "configs" / "image" / "digits" / "tiny.yaml"

    def started(name, size, *more):
        return Ranks(
            tmp_path, size, "train", config, *settings, f"output_dir={tmp_path / name}",
            f"train.steps={steps}", *more,
        )  # fmt: skip

    def trained(name, size, *more):
        ranks = started(name, size, *more)
        assert ranks.wait(3000) == [0] * size, ranks.told()
        return left_behind(tmp_path / name)

    one = trained("one", 1)
    for size, shard in ((2, 1), (4, 1), (2, 2), (4, 2)):
        name = f"{size}-{shard}"
        assert same_states(one, trained(name, size, f"parallel.shard={shard}"))
        assert_same_checkpoints(tmp_path / "one", tmp_path / name)
    draw, records, seen = random.Random("resumes"), tmp_path / "through" / "metrics.jsonl", 0
    for size, shard in ((1, 1), (2, 2), (4, 2)):
        ranks = started("through", size, f"parallel.shard={shard}", "--resume", "auto")
        seen += draw.randint(1, steps // 40)  # records, one in ten steps
        ranks.lives[0].until(lambda n=seen: records.exists() and len(lines(records)) >= n, 3000)
        ranks.lives[-1].send(signal.SIGTERM)
        assert ranks.wait(120) == [128 + signal.SIGTERM] * size, ranks.told()
        seen = len(lines(records))
    through = trained("through", 1, "--resume", "auto")
    assert beside_checkpoints(through) == beside_checkpoints(one)
    one, other = (checkpoints.load(checkpoints.newest(tmp_path / n)) for n in ("one", "through"))
    for key in STATE:
        assert_equal(one[key], other[key], key)
