"""Sampling grids: the uniform one, and FLUX.1's shift against its published values."""

import math

import numpy as np
import pytest
import torch

from fluxsmith.flow.solvers import (
    SCHEDULES,
    FluxSchedule,
    ShiftedSchedule,
    shift,
    uniform_grid,
)


def test_uniform_grid_has_equal_steps_from_1_to_0():
    assert uniform_grid(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert uniform_grid(1).tolist() == [1, 0]


@pytest.mark.parametrize("steps", [0, -3])
def test_a_grid_without_a_step_is_refused_by_number(steps):
    with pytest.raises(ValueError, match=str(steps)):
        uniform_grid(steps)


def test_mu_is_published_at_256_and_4096_tokens_and_linear_between():
    flux_mu = FluxSchedule().mu
    assert flux_mu(256) == pytest.approx(0.5)
    assert flux_mu(4096) == pytest.approx(1.15)
    assert flux_mu(1024) == pytest.approx(0.5 + 0.65 * 768 / 3840)  # = 0.63
    assert flux_mu(16) == pytest.approx(math.log(1.58), abs=2e-3)  # the shift a 32x32 image gets


@pytest.mark.parametrize("mu", [-0.7, 0.5, 0.63, 1.15, 3.0])
def test_shift_is_its_formula_and_keeps_the_ends(mu):
    t = torch.linspace(0.01, 1, 100, dtype=torch.float64)
    torch.testing.assert_close(shift(t, mu), math.exp(mu) / (math.exp(mu) + (1 / t - 1)))
    assert shift(torch.tensor([0.0, 1.0]), mu).tolist() == [0, 1]


def test_shift_by_nothing_is_nothing_and_by_minus_mu_the_inverse():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.equal(shift(t, 0.0), t)
    torch.testing.assert_close(shift(shift(t, 1.15), -1.15), t)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_every_schedule_falls_from_1_to_0(name, steps):
    schedule = SCHEDULES[name]
    ts = (schedule() if isinstance(schedule, type) else schedule)(steps, 1024)
    assert ts.shape == (steps + 1,)
    assert ts.dtype == torch.float32
    assert ts[0] == 1
    assert ts[-1] == 0
    assert (ts.diff() < 0).all()


SPACED = [{}, {"shift_terminal": 0.02}, {"spacing": "karras"}, {"spacing": "exponential"}]
THEIRS = {
    "spacing": lambda rule: {f"use_{rule}_sigmas": True},
    "base_tokens": lambda n: {"base_image_seq_len": n},
    "max_tokens": lambda n: {"max_image_seq_len": n},
    "shift_type": lambda kind: {"time_shift_type": kind},
}


@pytest.mark.parametrize("tokens", [16, 1024, 4096])
@pytest.mark.parametrize("steps", [1, 4, 50])
@pytest.mark.parametrize(
    "keys",
    [
        *SPACED,
        *({"shift": 3.0, **spaced} for spaced in SPACED),
        {"base_shift": 0.25, "max_shift": 0.9, "base_tokens": 64, "max_tokens": 1024},
        {"shift_type": "linear", "base_shift": 1.5},
    ],
    ids=str,
)
def test_grids_are_those_of_diffusers(steps, tokens, keys):
    """FluxPipeline: sigmas linear from 1 to 1/steps, mu from the line in the scheduler's config."""
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_flow_match_euler_discrete")
    if steps == 1 and "shift_terminal" in keys:
        pytest.skip("theirs divides 0 by 0")
    settings = {"use_dynamic_shifting": "shift" not in keys}
    for key, value in keys.items():
        settings |= THEIRS.get(key, lambda value, key=key: {key: value})(value)
    scheduler = scheduling.FlowMatchEulerDiscreteScheduler(**settings)
    c = scheduler.config
    slope = (c.max_shift - c.base_shift) / (c.max_image_seq_len - c.base_image_seq_len)
    mu = c.base_shift + slope * (tokens - c.base_image_seq_len)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
    ours = (ShiftedSchedule if "shift" in keys else FluxSchedule)(**keys)(steps, tokens)
    torch.testing.assert_close(ours, scheduler.sigmas, rtol=0, atol=1e-6)


def test_one_step_is_from_noise_to_data_whatever_the_schedule():
    for keys in SPACED:
        assert FluxSchedule(**keys)(1, 1024).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"shift_terminal": 1.0}, "shift_terminal=1.0: must be"),
        ({"base_tokens": 4096}, "below max_tokens=4096"),
        ({"base_shift": 1000.0}, "base_shift=1000.0: must be from -10 to 10"),
        ({"shift_type": "linear", "base_shift": -1.0}, "a linear shift must be above 0"),
    ],
)
def test_settings_that_give_no_grid_are_named(keys, said):
    with pytest.raises(ValueError, match=said):
        FluxSchedule(**keys)
