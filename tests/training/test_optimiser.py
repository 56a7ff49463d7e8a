"""The learning rate's course, weight decay's reach, and the moving average, in closed form."""

import math

import pytest
import torch
from torch import nn

from fluxsmith.config.train_section import TrainConfig
from fluxsmith.parallel.shares import Whole
from fluxsmith.training.averages import EMA
from fluxsmith.training.optimiser import build_optimiser, learning_rate


def rates(**settings):
    config = TrainConfig(learning_rate=1.0, **settings)
    return [learning_rate(step, config) for step in range(config.steps)]


def test_warm_up_is_linear_and_reaches_the_peak():
    assert rates(steps=8, warmup_steps=4, schedule="constant") == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert rates(steps=2, warmup_steps=0, schedule="constant") == [1, 1]


def test_cosine_falls_from_the_peak_to_nearly_nothing():
    course = rates(steps=104, warmup_steps=4, schedule="cosine")
    assert course[4] == 1
    assert course[54] == pytest.approx(0.5)
    assert course[29] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert course[103] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))


def test_linear_tail_is_flat_then_a_straight_line():
    course = rates(steps=10, warmup_steps=0, schedule="linear_tail", tail=0.4)
    assert course == pytest.approx([1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert rates(steps=3, warmup_steps=0, schedule="linear_tail", tail=0.0) == [1, 1, 1]


def test_only_matrices_decay():
    module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    optimiser = build_optimiser({module: 1.0}, TrainConfig(weight_decay=0.5, learning_rate=0.1))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    for name, p in module.named_parameters():
        factor = 1 - 0.1 * 0.5 if p.ndim > 1 else 1.0
        torch.testing.assert_close(p.detach(), before[name] * factor)


def test_average_of_a_constant_is_the_constant_and_of_a_step_is_geometric():
    module = nn.Linear(2, 2)
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(1.0)
    ema = EMA(module, decay=0.5)
    ema.update(module.parameters(), ema.share(100))
    assert torch.equal(ema.weights["weight"], torch.ones(2, 2))
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(2.0)
    for n in range(3):
        ema.update(module.parameters(), ema.share(100 + n))
    torch.testing.assert_close(ema.weights["weight"], torch.full((2, 2), 2 - 0.5**3))


def test_decay_warms_up():
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    ema = EMA(module, decay=0.999)
    nn.init.ones_(module.weight)
    expected = 0.0
    for n in range(4):
        ema.update(module.parameters(), ema.share(n))
        expected += (1 - (1 + n) / (10 + n)) * (1 - expected)
    assert ema.weights["weight"].item() == pytest.approx(expected)
    assert expected > 0.99


def test_the_average_stands_in_and_steps_back():
    module = nn.Linear(2, 2)
    ema = EMA(module, decay=0.9)
    averaged = ema.weights["weight"].clone()
    with torch.no_grad():
        module.weight.add_(1)
    own, address = module.weight.detach().clone(), module.weight.data_ptr()
    with pytest.raises(RuntimeError), Whole(module).holding(ema.weights):
        assert torch.equal(module.weight, averaged)
        raise RuntimeError("even then")
    assert torch.equal(module.weight, own)
    assert module.weight.data_ptr() == address
