"""The memory of a step without numbers is that of a step with them."""

import pytest
import torch
from planning.memory_profile import held_by
from planning.test_planning_forecast import planner
from torch import nn

from fluxsmith.planning.outline import Outline
from fluxsmith.planning.trace import Allocations, traced
from fluxsmith.storage.tensor_files import write_tensors

WITH_BLOCKS = ("model.depth=2", "model.depth_single_blocks=3", "model.hidden_size=128",
               "model.num_heads=2")  # fmt: skip
LORA = ("train.adapter.kind=lora", "train.init_from=not-here-yet")
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("train.kernels=off",),
        ("train.batch_size=16", "train.accumulate=4"),
        ("train.precision=bfloat16",),
        ("parallel.checkpoint_activations=blocks",),
        ("train.batch_size=16", "parallel.pieces=4"),
        (*LORA, "train.adapter.base_dtype=float32"),
        pytest.param((*LORA, "train.adapter.targets=[all]", "train.adapter.rank=64"), marks=SLOW),
        pytest.param((*LORA, "train.adapter.base_dtype=float8", "train.kernels=off"), marks=SLOW),
    ],
    ids=[
        "kernels",
        "plain",
        "accumulated",
        "bfloat16",
        "checkpointed",
        "pieces",
        "lora",
        "lora-bfloat16",
        "lora-float8",
    ],
)
def test_a_traced_step_holds_what_a_real_one_holds(toy, changes):
    config = toy(*WITH_BLOCKS, *changes)
    outline = Outline.of(config)
    captions = outline.fullest(config.train.batch_size)

    def real():
        trainer = outline.trainer(config)
        for _ in range(2):
            trainer.train_step(outline.batch(captions))

    real()  # what comes once and stays
    planned = sum(traced(outline, config).at_most().values())
    assert planned == pytest.approx(held_by(real), rel=0.02)


def test_checkpointed_activations_are_fewer_and_all_else_is_as_it_was(toy):
    many = (*WITH_BLOCKS, "train.batch_size=128")
    outline = Outline.of(toy(*many))
    plain, again = (
        traced(outline, toy(*many, f"parallel.checkpoint_activations={kind}")).at_most()
        for kind in ("none", "blocks")
    )
    assert again["activations"] < 0.6 * plain["activations"]
    for part in ("weights", "optimiser", "average"):
        assert again[part] == plain[part]


def test_parts_are_those_of_the_parameters(toy):
    """Weights and average have four bytes for each parameter, and AdamW's moments eight."""
    outline = Outline.of(toy())
    found = traced(outline, outline.config).at_most()
    count = sum(p.numel() for p in outline.trainer(outline.config).pipeline.parameters())
    assert found["average"] == 4 * count
    assert found["weights"] == pytest.approx(4 * count, rel=0.01)  # and a few buffers
    assert found["optimiser"] == pytest.approx(8 * count, rel=0.01)  # and a count each


@SLOW
def test_what_a_lora_trains_is_all_that_needs_more_than_its_weights(toy, pipeline, tmp_path):
    """Beside the base, in the dtype that its file has."""
    weights = {name: x.bfloat16() for name, x in pipeline.network.state_dict().items()}
    write_tensors(tmp_path / "base.safetensors", weights, {})
    config = toy(*LORA, f"train.init_from={tmp_path / 'base.safetensors'}")
    outline = Outline.of(config)
    found = traced(outline, config).at_most()
    parameters = [*outline.trainer(config).pipeline.network.parameters()]
    own = sum(p.numel() for p in parameters if p.requires_grad)
    base = sum(p.numel() for p in parameters if not p.requires_grad)
    assert found["average"] == 4 * own
    assert found["optimiser"] == pytest.approx(8 * own, rel=0.01)
    text = sum(p.numel() for p in pipeline.text.parameters())
    assert found["weights"] == pytest.approx(4 * own + 2 * base + 4 * text, rel=0.01)
    forecast = planner(config, 2**40, devices=2).forecast()
    assert forecast.parameters == own
    assert forecast.traffic == {"within": 0, "between": 4 * own}
    assert "parallel.shard" not in planner(config, 2**10, devices=2).forecast().advice


def test_a_trace_leaves_nothing_behind(toy):
    """Tables that are kept between calls have numbers in them afterwards, and a run is the run."""
    config = toy("train.deterministic=true")
    outline = Outline.of(config)

    def weights():
        trainer = outline.trainer(config)
        nn.init.normal_(trainer.pipeline.network.final_layer.linear.weight,
                        generator=torch.Generator().manual_seed(0))  # fmt: skip
        trainer.train_step(outline.batch(["3"] * 8))
        return [p.detach().clone() for p in trainer.pipeline.parameters()]

    torch.manual_seed(0)
    before = weights()
    traced(outline, config)
    torch.manual_seed(0)
    assert all(map(torch.equal, before, weights()))


def test_a_block_less_is_the_memory_of_a_block_less(toy):
    outline = Outline.of(toy())
    one, two, three = (
        traced(outline, toy("train.batch_size=64", f"model.depth_single_blocks={n}")).at_most()
        for n in (1, 2, 3)
    )
    assert sum(three.values()) - sum(two.values()) == sum(two.values()) - sum(one.values())


def test_what_lives_is_counted_until_it_is_freed():
    with Allocations() as found:
        a = torch.zeros(1000)
        b = a + 1
        found.mark("weights", [a])
        del b
        c = a * 2  # while only a lives
        del c
    assert found.at_most()["weights"] == 4000
    assert found.at_most()["activations"] == 4000
