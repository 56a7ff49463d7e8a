"""From prompts to pictures: noise, guidance, solver, sizes, edits, settings."""

import pytest
import torch
from helpers import randomise

from fluxsmith import Pipeline
from fluxsmith.errors import UserError
from fluxsmith.randomness import image_noise
from fluxsmith.sampling.edit import Edit
from fluxsmith.sampling.generate import JOINT_TOKENS, Sampler


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint"])
def test_a_picture_does_not_depend_on_its_batch(pipeline, solver):
    prompts = ["one", "a long prompt of many words", "3", "", "five", "seven"]
    settings = {"steps": 20, "guidance": 2.0, "seed": 5, "solver": solver}
    together = Sampler(pipeline).generate(prompts, **settings)
    in_pairs = Sampler(pipeline).generate(prompts, batch_size=2, **settings)
    torch.testing.assert_close(in_pairs, together, atol=1e-4, rtol=0)
    for i, prompt in enumerate(prompts):
        alone = Sampler(pipeline).generate([prompt], first_index=i, **settings)
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-4, rtol=0)
    assert (together[0] - together[2]).abs().max() > 0.1


def test_equal_seeds_draw_equal_bytes_and_others_differ(pipeline):
    one, two = (Sampler(pipeline).generate(["3", "4"], steps=2, seed=7) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, Sampler(pipeline).generate(["3", "4"], steps=2, seed=8))


def test_an_accent_is_the_same_however_it_is_typed(pipeline):
    one, other = (Sampler(pipeline).plan([word], negative_prompt=word)
                  for word in ("caf\u00e9", "cafe\u0301"))  # fmt: skip
    assert one == other and one.prompts == ["caf\u00e9"]


def test_what_is_wrong_with_a_negative_prompt_is_said_of_it(pipeline):
    with pytest.raises(UserError, match=r"negative prompt: prompt 1 .* tokens"):
        Sampler(pipeline).plan(["3"], guidance=2, negative_prompt="word " * 65)


def test_a_linear_shift_that_falls_to_0_is_named(toy, pipeline):
    settings = toy("sample={schedule: flux, shift_type: linear, max_shift: -0.5}").sample
    assert Sampler(pipeline, settings).plan(["3"]).steps
    with pytest.raises(UserError, match=r"sample\.max_shift=-0\.5: at 4096 image tokens"):
        Sampler(pipeline, settings).plan(["3"], size=(256, 256))


def test_one_euler_step_is_noise_minus_velocity(pipeline):
    drawn = Sampler(pipeline).generate(["3"], steps=1, guidance=1, seed=7)
    noise = image_noise((1, 16, 16), 7, range(1))
    with torch.no_grad():
        v = pipeline.velocity(noise, torch.tensor(1.0), pipeline.encode_text(["3"]))
    torch.testing.assert_close(drawn, (noise - v).clamp(-1, 1))


def test_guidance_extrapolates_from_the_empty_prompt(pipeline):
    x, t = torch.randn(1, 1, 16, 16), torch.tensor(0.5)
    with torch.no_grad():
        cond = pipeline.velocity(x, t, pipeline.encode_text(["3"]))
        null = pipeline.velocity(x, t, pipeline.encode_text([""]))
        guided = Sampler(pipeline).guided_velocity(pipeline.encode_text(["3"]), 3.0)(x, t)
    torch.testing.assert_close(guided, null + 3 * (cond - null), atol=1e-5, rtol=1e-5)
    assert (guided - cond).abs().max() > 1e-3


@pytest.mark.parametrize(("guidance", "rows"), [(0.0, 1), (1.0, 1), (2.0, 2)])
def test_guidance_evaluates_both_velocities_in_one_batch(pipeline, guidance, rows):
    assert rows_evaluated(pipeline, ["3"], guidance) == [rows] * 5


@pytest.mark.parametrize(("prompt", "tokens"), [("3", 2 * (16 + 1)), ("a 3", 2 * (16 + 2))])
def test_large_batches_are_not_doubled(pipeline, prompt, tokens):
    """At the number of tokens of two pictures and their text, and one below it."""
    limits = (10**9, tokens) if prompt == "a 3" else (tokens, 0)
    assert rows_evaluated(pipeline, [prompt] * 2, 2.0, limits) == [4] * 5
    assert rows_evaluated(pipeline, [prompt] * 3, 2.0, limits) == [3] * 10
    lower = (10**9, tokens - 1) if prompt == "a 3" else (tokens - 1, 10**9)
    assert rows_evaluated(pipeline, [prompt] * 2, 2.0, lower) == [2] * 10


def rows_evaluated(pipeline, prompts, guidance, joint_tokens=JOINT_TOKENS):
    seen = []
    hook = pipeline.network.register_forward_hook(lambda *called: seen.append(len(called[2])))
    sampler = Sampler(pipeline)
    sampler.joint_tokens = joint_tokens
    sampler.generate(prompts, steps=5, guidance=guidance)
    hook.remove()
    return seen


@pytest.mark.parametrize("prompts", [["3", "four"], ["a longer one", "3"], ["", "3"]], ids=str)
@pytest.mark.parametrize("t", [torch.tensor(0.5), torch.tensor([0.5, 0.6])], ids=["one t", "two"])
def test_guided_velocities_are_the_same_together_and_apart(pipeline, prompts, t):
    x, cond = torch.randn(2, 1, 16, 16), pipeline.encode_text(prompts)
    with torch.no_grad():
        together = Sampler(pipeline).guided_velocity(cond, 3.0)(x, t)
        one_by_one = Sampler(pipeline)
        one_by_one.joint_tokens = 0, 0
        apart = one_by_one.guided_velocity(cond, 3.0)(x, t)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


def test_guidance_interval_saves_evaluations(toy):
    pipeline = Pipeline.build(toy("sample.guidance_interval=[0.25, 0.65]"))
    assert rows_evaluated(pipeline, ["3"], 2.0) == [1, 1, 2, 2, 1]  # at t = 1, 0.8, 0.6, 0.4, 0.2


def test_embedded_guidance_reaches_the_network_in_one_evaluation(toy):
    pipeline = Pipeline.build(
        toy("model.guidance_embed=true", "sample.guidance_method=embedded")
    ).eval()
    randomise(pipeline)
    seen = []
    pipeline.network.register_forward_hook(lambda *_: seen.append(1))
    low, high = (Sampler(pipeline).generate(["3"], steps=2, guidance=g) for g in (1.5, 4.0))
    assert len(seen) == 4
    assert not torch.equal(low, high)


def test_a_picture_of_any_size_is_drawn(pipeline):
    """Also one that isn't square; the network's positions go on where training ended."""
    drawn = Sampler(pipeline).generate(["3", "4"], steps=2, size=(24, 40))
    assert drawn.shape == (2, 1, 24, 40)
    same_size = Sampler(pipeline).generate(["3"], steps=2, size=(16, 16))
    assert torch.equal(same_size, Sampler(pipeline).generate(["3"], steps=2))


def test_full_strength_forgets_the_picture_and_a_mask_keeps_it(pipeline):
    image = torch.rand(1, 16, 16) * 2 - 1
    anew = Sampler(pipeline).generate(["3"], steps=3, edit=Edit(image, strength=1.0))
    torch.testing.assert_close(anew, Sampler(pipeline).generate(["3"], steps=3), atol=1e-5, rtol=0)
    mask = torch.zeros(1, 16, 16)
    mask[:, :, :8] = 1
    kept = Sampler(pipeline).generate(["3"], steps=3, edit=Edit(image, 0.7, mask))[0]
    torch.testing.assert_close(kept[:, :, 8:], image[:, :, 8:], atol=1e-5, rtol=0)
    assert (kept[:, :, :8] - image[:, :, :8]).abs().mean() > 0.05


def test_on_step_sees_the_way_from_noise_to_the_picture(pipeline):
    seen = []
    drawn = Sampler(pipeline).generate(
        ["3", "4"], steps=4, seed=1, on_step=lambda i, t, x: seen.append((i, t, x))
    )
    assert [i for i, _, _ in seen] == [0, 1, 2, 3, 4]
    assert [t for _, t, _ in seen] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert torch.equal(seen[0][2], image_noise((1, 16, 16), 1, range(2)))
    assert torch.equal(seen[-1][2].clamp(-1, 1), drawn)


def test_pictures_lie_within_bounds_and_modes_are_put_back(pipeline):
    pipeline.train()
    drawn = Sampler(pipeline).generate(["3"] * 3, steps=2)
    assert drawn.shape == (3, 1, 16, 16)
    assert drawn.abs().max() <= 1
    assert pipeline.training


def test_sampling_first_leaves_training_possible(toy):
    """Tables made while sampling are used by training: they must not be inference tensors."""
    pipeline = Pipeline.build(toy("data.image_size=24"))
    with torch.inference_mode():
        Sampler(pipeline).generate(["3"], steps=1)
    x, cond = torch.randn(1, 1, 24, 24), pipeline.encode_text(["3"])
    pipeline.velocity(x, torch.tensor([0.5]), cond).square().mean().backward()
    assert pipeline.network.final_layer.linear.weight.grad is not None


@pytest.mark.parametrize("channels", [1, 3])
def test_widths_follow_from_the_data(toy, channels):
    pipeline = Pipeline.build(toy(f"data.channels={channels}"))
    assert pipeline.network.params.in_channels == channels * 16
    assert pipeline.network.params.context_in_dim == 64
    assert Sampler(pipeline).generate(["3"], steps=1).shape == (1, channels, 16, 16)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"steps": 0}, "steps=0"),
        ({"guidance": float("nan")}, "guidance=nan"),
        ({"solver": "rk45"}, "euler, heun, midpoint"),
        ({"size": (16, 18)}, r"width=18: must be a multiple of 4, such as 16 or 20"),
        ({"size": (2, 16)}, r"height=2: must be a multiple of 4, such as 4 or 8"),
        ({"edit": Edit(torch.zeros(1, 16, 16), 0.0)}, r"strength=0\.0"),
        ({"edit": Edit(torch.zeros(1, 8, 16))}, r"the image has 8x16 pixels and the picture 16x16"),
    ],
)
def test_impossible_settings_are_named(pipeline, settings, names):
    with pytest.raises(UserError, match=names):
        Sampler(pipeline).generate(["3"], **settings)


def test_no_prompt_and_too_long_a_prompt_are_named(pipeline):
    with pytest.raises(UserError, match="no prompt"):
        Sampler(pipeline).generate([])
    with pytest.raises(UserError, match=r"prompt 2 .* takes 64"):
        Sampler(pipeline).generate(["3", "word " * 65])
