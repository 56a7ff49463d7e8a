"""The network itself: its weights by name, where it starts, masks, dtypes, gradients."""

import copy
import math
import re

import pytest
import torch
from flux_at_random import flux_at_random, inputs, tiny_params

from fluxsmith.model.flux import PRESETS, Flux

# The layers and scales of BFL's released weights, at hidden 32, 2 heads, one block of each kind.
EMBEDDERS = {"time_in": 256, "vector_in": 6, "guidance_in": 256}
LINEAR = {
    "img_in": (32, 4),
    "txt_in": (32, 10),
    **{f"{name}.in_layer": (32, width) for name, width in EMBEDDERS.items()},
    **{f"{name}.out_layer": (32, 32) for name in EMBEDDERS},
    **{
        f"double_blocks.0.{stream}_{layer}": shape
        for stream in ("img", "txt")
        for layer, shape in {
            "mod.lin": (192, 32),
            "attn.qkv": (96, 32),
            "attn.proj": (32, 32),
            "mlp.0": (128, 32),
            "mlp.2": (32, 128),
        }.items()
    },
    "single_blocks.0.linear1": (224, 32),
    "single_blocks.0.linear2": (32, 160),
    "single_blocks.0.modulation.lin": (96, 32),
    "final_layer.linear": (4, 32),
    "final_layer.adaLN_modulation.1": (64, 32),
}
NORMS = ["double_blocks.0.img_attn", "double_blocks.0.txt_attn", "single_blocks.0"]
BFL_KEYS = {
    **{f"{name}.weight": shape for name, shape in LINEAR.items()},
    **{f"{name}.bias": shape[:1] for name, shape in LINEAR.items()},
    **{f"{name}.norm.{part}_norm.scale": (16,) for name in NORMS for part in ("query", "key")},
}


@pytest.fixture(scope="module")
def flux():
    return flux_at_random(tiny_params())


@pytest.mark.parametrize(
    ("preset", "count"),
    [("lesson", 59_845_696), ("flux1-schnell", 11_891_178_560), ("flux1-dev", 11_901_408_320)],
)
def test_presets_have_as_many_parameters_as_what_they_are_named_for(preset, count):
    with torch.device("meta"):
        flux = Flux(PRESETS[preset])
    assert sum(p.numel() for p in flux.parameters()) == count


@pytest.mark.parametrize("optional", [True, False])
def test_state_dict_has_the_keys_and_shapes_of_bfl(optional):
    parts = {"guidance_embed": optional, "qkv_bias": optional}
    flux = Flux(tiny_params(depth=1, depth_single_blocks=1, **parts))
    assert {key: tuple(w.shape) for key, w in flux.state_dict().items()} == {
        key: shape
        for key, shape in BFL_KEYS.items()
        if optional or not (key.startswith("guidance_in.") or key.endswith("qkv.bias"))
    }


# Params


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 33}, "hidden_size 33 .* num_heads 2"),
        ({"axes_dim": (4, 6, 8)}, r"\[4, 6, 8\] sums to 18.* = 16"),
        ({"axes_dim": (5, 5, 6)}, r"\[5, 5, 6\] must be three positive even numbers"),
        ({"axes_dim": (8, 8)}, r"\[8, 8\] must be three positive even numbers"),
        ({"axes_dim": (20, -2, -2)}, r"\[20, -2, -2\] must be three positive even numbers"),
        ({"depth": -1}, "depth is -1; it must be at least 0"),
        ({"num_heads": 0}, "num_heads is 0; it must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_number(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_params(**changes)


# Initialisation


def test_a_new_network_predicts_exactly_0_and_its_blocks_are_the_identity():
    flux = Flux(tiny_params(guidance_embed=True))
    x = inputs(flux.params)
    assert torch.equal(flux(**x), torch.zeros(3, 15, 4))
    img, txt, vec = torch.randn(3, 15, 32), torch.randn(3, 4, 32), torch.randn(3, 32)
    pe = flux.rotary(x["txt_ids"], x["img_ids"])
    for block in flux.double_blocks:
        assert all(map(torch.equal, block(img, txt, vec, pe, None), (img, txt)))
    both = torch.cat((txt, img), dim=1)
    for block in flux.single_blocks:
        assert torch.equal(block(both, vec, pe, None), both)


def test_initial_weights():
    """0 for modulations and output, N(0, 0.02) for embedders, Xavier uniform for the rest."""
    torch.manual_seed(0)
    flux = Flux(tiny_params(hidden_size=128, num_heads=8, guidance_embed=True))
    for name, p in flux.named_parameters():
        if name.endswith("scale"):
            assert (p == 1).all(), name
        elif name.endswith("bias") or re.search(r"modulation|_mod\.|final_layer", name):
            assert not p.any(), name
        elif name.partition(".")[0] in EMBEDDERS:
            assert p.std().item() == pytest.approx(0.02, rel=0.1), name
            assert p.abs().max() > 0.04, name  # a normal distribution has tails
        else:
            bound = math.sqrt(6 / sum(p.shape))
            assert 0.95 * bound < p.abs().max() <= bound, name
            assert p.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1), name


# What the forward pass depends on


@torch.no_grad()
@pytest.mark.parametrize("name", ["img", "txt", "timesteps", "y", "guidance", "img_ids"])
def test_every_input_matters(name):
    flux = flux_at_random(tiny_params(guidance_embed=True))
    x = inputs(flux.params)
    moved = {**x, name: x[name] * 0.9 + 0.05}
    assert (flux(**moved) - flux(**x)).abs().mean() > 1e-3


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch(flux):
    x = inputs(flux.params)
    together = flux(**x)
    for i in range(3):
        one = {k: v[i : i + 1] for k, v in x.items() if k in ("img", "txt", "timesteps", "y")}
        alone = flux(**one, img_ids=x["img_ids"], txt_ids=x["txt_ids"])
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-5)


@torch.no_grad()
def test_ids_of_their_own_for_each_sample(flux):
    x = inputs(flux.params)
    ids = x["img_ids"].expand(3, -1, -1).clone()
    ids[1, :, 1] *= 2
    own = flux(**{**x, "img_ids": ids, "txt_ids": x["txt_ids"].expand(3, -1, -1)})
    for i in (0, 1):
        shared = flux(**{**x, "img_ids": ids[i]})
        torch.testing.assert_close(own[i], shared[i], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("embeds", "message"), [(True, "needs"), (False, "does not take")])
def test_guidance_is_given_exactly_where_the_network_has_an_input_for_it(embeds, message):
    flux = Flux(tiny_params(guidance_embed=embeds))
    x = inputs(flux.params)
    x["guidance"] = None if embeds else torch.ones(3)
    with pytest.raises(ValueError, match=message):
        flux(**x)


@torch.no_grad()
def test_masked_text_is_text_that_is_not_there(flux):
    x = inputs(flux.params)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]).bool()
    other = torch.where(mask[..., None], x["txt"], 100 * torch.randn(x["txt"].shape))
    masked = flux(**{**x, "txt": other}, txt_mask=mask)
    torch.testing.assert_close(masked[0], flux(**x)[0], rtol=0, atol=1e-5)
    cut = {**x, "txt": x["txt"][:, :2], "txt_ids": x["txt_ids"][:2]}
    torch.testing.assert_close(masked[1:], flux(**cut)[1:], rtol=0, atol=1e-5)
    assert (masked - flux(**x))[1:].abs().amax(dim=(1, 2)).min() > 1e-3


# Gradients, dtypes, devices


def test_a_new_network_wakes_from_its_output_inwards():
    """Zeroed layers let no gradient through until they have moved; the text's side is the last."""
    flux = Flux(tiny_params(guidance_embed=True))
    x = inputs(flux.params)
    learning = []
    descent = torch.optim.SGD(flux.parameters(), lr=0.1)
    for _ in range(5):
        descent.zero_grad()
        (flux(**x) - x["img"]).square().mean().backward()
        learning.append({name for name, p in flux.named_parameters() if p.grad.any()})
        descent.step()
    assert learning[0] == {"final_layer.linear.weight", "final_layer.linear.bias"}
    assert "double_blocks.0.img_mlp.0.weight" not in learning[1]
    assert learning[-1] == {name for name, _ in flux.named_parameters()}


def relative_error(a, b):
    return ((a.float() - b).norm() / b.norm()).item()


def test_bfloat16_is_close_to_float32_by_autocast_and_by_weights_and_trains(flux):
    x = inputs(flux.params)
    network = copy.deepcopy(flux)
    with torch.autocast("cpu", torch.bfloat16):
        half = network(**x)
    assert 0 < relative_error(half, flux(**x)) < 0.03
    half.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in network.parameters())
    weights = network.bfloat16()(**x)
    assert weights.dtype == torch.bfloat16
    assert 0 < relative_error(weights, flux(**x)) < 0.03


@torch.no_grad()
@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no CUDA or MPS GPU")
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-4), (torch.bfloat16, 0.03)])
def test_a_gpu_computes_what_the_cpu_computes(flux, dtype, within):
    device = torch.accelerator.current_accelerator().type
    x = inputs(flux.params)
    on_gpu = {key: None if v is None else v.to(device) for key, v in x.items()}
    network = copy.deepcopy(flux).to(device)
    with torch.autocast(device, torch.bfloat16):
        half = network(**on_gpu)
    there = network.to(dtype)(**on_gpu)
    assert there.device.type == device
    assert relative_error(there.cpu(), flux(**x)) < within
    assert relative_error(half.cpu(), flux(**x)) < 0.03
