"""The one way to call the model: encode, velocity, generate."""

import pytest
import torch
from helpers import randomise

from fluxsmith import Pipeline
from fluxsmith.errors import UserError
from fluxsmith.model.tokens import image_ids, patchify, text_ids, unpatchify
from fluxsmith.pipeline import Edit
from fluxsmith.pipeline import pipeline as pipelines
from fluxsmith.randomness import image_noise


def test_build_is_the_same_every_time_and_leaves_the_global_stream_alone(toy):
    before = torch.get_rng_state()
    one, two = Pipeline.build(toy()), Pipeline.build(toy())
    other = Pipeline.build(toy("seed=1"))
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name
    assert not torch.equal(one.network.img_in.weight, other.network.img_in.weight)


def test_tensors_are_named_as_checkpoints_have_them(pipeline):
    names = pipeline.state_dict().keys()
    assert {name.split(".")[0] for name in names} == {"network", "text"}
    assert "network.double_blocks.0.img_attn.qkv.weight" in names


def test_velocity_is_patchify_flux_unpatchify(pipeline):
    x = torch.randn(3, 1, 16, 16)
    t = torch.tensor([0.1, 0.5, 0.9])
    cond = pipeline.encode_text(["3", "five", ""])
    tokens = pipeline.network(
        patchify(x, 4),
        image_ids(4, 4, x.device),
        cond.tokens,
        text_ids(1, x.device),
        t,
        cond.pooled,
    )
    expected = unpatchify(tokens, 4, 16, 16)
    assert torch.equal(pipeline.velocity(x, t, cond), expected)
    assert expected.abs().mean() > 0.1


def test_velocity_takes_a_scalar_time(pipeline):
    x, cond = torch.randn(2, 1, 16, 16), pipeline.encode_text(["1", "2"])
    at = pipeline.velocity(x, torch.tensor(0.3), cond)
    assert torch.equal(at, pipeline.velocity(x, torch.tensor([0.3, 0.3]), cond))


def test_prompts_of_uneven_length_do_not_disturb_each_other(pipeline):
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([0.4, 0.7])
    together = pipeline.velocity(x, t, pipeline.encode_text(["3", "a rather long prompt"]))
    alone = pipeline.velocity(x[:1], t[:1], pipeline.encode_text(["3"]))
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint"])
def test_a_picture_does_not_depend_on_its_batch(pipeline, solver):
    prompts = ["one", "a long prompt of many words", "3", "", "five", "seven"]
    settings = {"steps": 20, "guidance": 2.0, "seed": 5, "solver": solver}
    together = pipeline.generate(prompts, **settings)
    in_pairs = pipeline.generate(prompts, batch_size=2, **settings)
    torch.testing.assert_close(in_pairs, together, atol=1e-4, rtol=0)
    for i, prompt in enumerate(prompts):
        alone = pipeline.generate([prompt], first_index=i, **settings)
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-4, rtol=0)
    assert (together[0] - together[2]).abs().max() > 0.1


def test_equal_seeds_draw_equal_bytes_and_others_differ(pipeline):
    one, two = (pipeline.generate(["3", "4"], steps=2, seed=7) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, pipeline.generate(["3", "4"], steps=2, seed=8))


def test_one_euler_step_is_noise_minus_velocity(pipeline):
    drawn = pipeline.generate(["3"], steps=1, guidance=1, seed=7)
    noise = image_noise((1, 16, 16), 7, range(1))
    with torch.no_grad():
        v = pipeline.velocity(noise, torch.tensor(1.0), pipeline.encode_text(["3"]))
    torch.testing.assert_close(drawn, (noise - v).clamp(-1, 1))


def test_guidance_extrapolates_from_the_empty_prompt(pipeline):
    x, t = torch.randn(1, 1, 16, 16), torch.tensor(0.5)
    with torch.no_grad():
        cond = pipeline.velocity(x, t, pipeline.encode_text(["3"]))
        null = pipeline.velocity(x, t, pipeline.encode_text([""]))
        guided = pipeline.guided_velocity(pipeline.encode_text(["3"]), 3.0)(x, t)
    torch.testing.assert_close(guided, null + 3 * (cond - null), atol=1e-5, rtol=1e-5)
    assert (guided - cond).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("guidance", "prompt", "rows"),
    [(1.0, "3", [1] * 5), (0.0, "3", [1] * 5), (2.0, "3", [2] * 5), (2.0, "a 3", [2] * 5)],
)
def test_guidance_evaluates_both_velocities_in_one_batch(pipeline, guidance, prompt, rows):
    assert rows_evaluated(pipeline, [prompt], guidance) == rows


@pytest.mark.parametrize(
    ("prompt", "limit", "tokens"),
    [("3", "TOGETHER", 2 * (16 + 1)), ("a 3", "TOGETHER_PADDED", 2 * (16 + 2))],
)
def test_large_batches_are_not_doubled(pipeline, prompt, limit, tokens, monkeypatch):
    monkeypatch.setattr(pipelines, limit, tokens)  # of two pictures, and of their text
    assert rows_evaluated(pipeline, [prompt] * 2, 2.0) == [4] * 5
    assert rows_evaluated(pipeline, [prompt] * 3, 2.0) == [3] * 10
    monkeypatch.setattr(pipelines, limit, tokens - 1)
    assert rows_evaluated(pipeline, [prompt] * 2, 2.0) == [2] * 10


def rows_evaluated(pipeline, prompts, guidance):
    seen = []
    hook = pipeline.network.register_forward_hook(lambda *called: seen.append(len(called[2])))
    pipeline.generate(prompts, steps=5, guidance=guidance)
    hook.remove()
    return seen


@pytest.mark.parametrize("prompts", [["3", "four"], ["a longer one", "3"], ["", "3"]], ids=str)
@pytest.mark.parametrize("t", [torch.tensor(0.5), torch.tensor([0.5, 0.6])], ids=["one t", "two"])
def test_guided_velocities_are_the_same_together_and_apart(pipeline, prompts, t, monkeypatch):
    x, cond = torch.randn(2, 1, 16, 16), pipeline.encode_text(prompts)
    with torch.no_grad():
        together = pipeline.guided_velocity(cond, 3.0)(x, t)
        monkeypatch.setattr(pipelines, "TOGETHER", 0)
        monkeypatch.setattr(pipelines, "TOGETHER_PADDED", 0)
        apart = pipeline.guided_velocity(cond, 3.0)(x, t)
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
    low, high = (pipeline.generate(["3"], steps=2, guidance=g) for g in (1.5, 4.0))
    assert len(seen) == 4
    assert not torch.equal(low, high)


def test_each_picture_may_have_a_guidance_of_its_own(toy):
    pipeline = Pipeline.build(toy("model.guidance_embed=true")).eval()
    randomise(pipeline)
    x, t = torch.randn(2, 1, 16, 16), torch.tensor(0.5)
    cond = pipeline.encode_text(["3", "4"])
    with torch.no_grad():
        together = pipeline.velocity(x, t, cond, torch.tensor([1.5, 4.0]))
        for i, scale in enumerate((1.5, 4.0)):
            alone = pipeline.velocity(x[i : i + 1], t, cond[i : i + 1], scale)
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)
    assert not torch.allclose(together, pipeline.velocity(x, t, cond, 1.5), atol=1e-3)


def test_a_picture_of_any_size_is_drawn(pipeline):
    """Also one that isn't square; the network's positions go on where training ended."""
    drawn = pipeline.generate(["3", "4"], steps=2, size=(24, 40))
    assert drawn.shape == (2, 1, 24, 40)
    same_size = pipeline.generate(["3"], steps=2, size=(16, 16))
    assert torch.equal(same_size, pipeline.generate(["3"], steps=2))


def test_full_strength_forgets_the_picture_and_a_mask_keeps_it(pipeline):
    image = torch.rand(1, 16, 16) * 2 - 1
    anew = pipeline.generate(["3"], steps=3, edit=Edit(image, strength=1.0))
    torch.testing.assert_close(anew, pipeline.generate(["3"], steps=3), atol=1e-5, rtol=0)
    mask = torch.zeros(1, 16, 16)
    mask[:, :, :8] = 1
    kept = pipeline.generate(["3"], steps=3, edit=Edit(image, 0.7, mask))[0]
    torch.testing.assert_close(kept[:, :, 8:], image[:, :, 8:], atol=1e-5, rtol=0)
    assert (kept[:, :, :8] - image[:, :, :8]).abs().mean() > 0.05


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": (16, 18)}, r"width=18: must be a multiple of 4, such as 16 or 20"),
        ({"size": (2, 16)}, r"height=2: must be a multiple of 4, such as 4 or 8"),
        ({"edit": Edit(torch.zeros(1, 16, 16), 0.0)}, r"strength=0\.0"),
        ({"edit": Edit(torch.zeros(1, 8, 16))}, r"the image has 8x16 pixels and the picture 16x16"),
    ],
)
def test_sizes_and_edits_that_can_not_be_drawn_are_named(pipeline, settings, said):
    with pytest.raises(UserError, match=said):
        pipeline.generate(["3"], **settings)


def test_on_step_sees_the_way_from_noise_to_the_picture(pipeline):
    seen = []
    drawn = pipeline.generate(
        ["3", "4"], steps=4, seed=1, on_step=lambda i, t, x: seen.append((i, t, x))
    )
    assert [i for i, _, _ in seen] == [0, 1, 2, 3, 4]
    assert [t for _, t, _ in seen] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert torch.equal(seen[0][2], image_noise((1, 16, 16), 1, range(2)))
    assert torch.equal(seen[-1][2].clamp(-1, 1), drawn)


def test_pictures_lie_within_bounds_and_modes_are_put_back(pipeline):
    pipeline.train()
    drawn = pipeline.generate(["3"] * 3, steps=2)
    assert drawn.shape == (3, 1, 16, 16)
    assert drawn.abs().max() <= 1
    assert pipeline.training


def test_sampling_first_leaves_training_possible(toy):
    """Tables made while sampling are used by training: they must not be inference tensors."""
    pipeline = Pipeline.build(toy("data.image_size=24"))
    with torch.inference_mode():
        pipeline.generate(["3"], steps=1)
    x, cond = torch.randn(1, 1, 24, 24), pipeline.encode_text(["3"])
    pipeline.velocity(x, torch.tensor([0.5]), cond).square().mean().backward()
    assert pipeline.network.final_layer.linear.weight.grad is not None


@pytest.mark.parametrize("channels", [1, 3])
def test_widths_follow_from_the_data(toy, channels):
    pipeline = Pipeline.build(toy(f"data.channels={channels}"))
    assert pipeline.network.params.in_channels == channels * 16
    assert pipeline.network.params.context_in_dim == 64
    assert pipeline.generate(["3"], steps=1).shape == (1, channels, 16, 16)


def test_bfloat16_autocast_stays_close_to_float32(toy, pipeline):
    coarse = Pipeline.build(toy("train.precision=bfloat16"))
    randomise(coarse)
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([0.2, 0.8])
    fine = pipeline.velocity(x, t, pipeline.encode_text(["3", "4"]))
    rough = coarse.velocity(x, t, coarse.encode_text(["3", "4"]))
    assert rough.dtype == torch.float32
    assert (rough - fine).norm() / fine.norm() < 0.05


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"batch_size": -1}, "batch_size=-1: must be at least 1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"steps": 0}, "steps=0"),
        ({"guidance": float("nan")}, "guidance=nan"),
        ({"solver": "rk45"}, "euler, heun, midpoint"),
    ],
)
def test_impossible_settings_are_named(pipeline, settings, names):
    with pytest.raises(UserError, match=names):
        pipeline.generate(["3"], **settings)


def test_no_prompt_and_too_long_a_prompt_are_named(pipeline):
    with pytest.raises(UserError, match="no prompt"):
        pipeline.generate([])
    with pytest.raises(UserError, match=r"prompt 2 .* takes 64"):
        pipeline.generate(["3", "word " * 65])


def test_weights_that_do_not_fit_are_named(toy, pipeline):
    other = Pipeline.build(toy("model.hidden_size=128", "model.num_heads=2"))
    with pytest.raises(UserError, match=r"network\.\S+ is \("):
        pipeline.load_weights(other.state_dict(), "x.pt")
    deeper = Pipeline.build(toy("model.depth=2"))
    with pytest.raises(UserError, match=r"x\.pt .* unknown \['network\.double_blocks\.1"):
        pipeline.load_weights(deeper.state_dict(), "x.pt")


def test_digest_tells_weights_apart(toy, pipeline):
    digest = pipeline.digest()
    assert digest == pipeline.digest()
    with torch.no_grad():
        pipeline.network.img_in.bias[0] += 1e-6
    assert pipeline.digest() != digest
