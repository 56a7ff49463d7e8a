"""The network itself: its weights by name, where it starts, masks, dtypes, gradients."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from flux_at_random import flux_at_random, inputs, tiny_params
from torch import nn

from fluxsmith.model.blocks import MLPEmbedder, timestep_embedding
from fluxsmith.model.flux import PRESETS, Flux

# The keys and shapes of BFL's released weights, at hidden 32, 2 heads, one block of each kind.
BFL_KEYS = {
    "img_in.weight": (32, 4),
    "img_in.bias": (32,),
    "txt_in.weight": (32, 10),
    "txt_in.bias": (32,),
    "time_in.in_layer.weight": (32, 256),
    "time_in.in_layer.bias": (32,),
    "time_in.out_layer.weight": (32, 32),
    "time_in.out_layer.bias": (32,),
    "vector_in.in_layer.weight": (32, 6),
    "vector_in.in_layer.bias": (32,),
    "vector_in.out_layer.weight": (32, 32),
    "vector_in.out_layer.bias": (32,),
    "guidance_in.in_layer.weight": (32, 256),
    "guidance_in.in_layer.bias": (32,),
    "guidance_in.out_layer.weight": (32, 32),
    "guidance_in.out_layer.bias": (32,),
    "double_blocks.0.img_mod.lin.weight": (192, 32),
    "double_blocks.0.img_mod.lin.bias": (192,),
    "double_blocks.0.img_attn.qkv.weight": (96, 32),
    "double_blocks.0.img_attn.qkv.bias": (96,),
    "double_blocks.0.img_attn.norm.query_norm.scale": (16,),
    "double_blocks.0.img_attn.norm.key_norm.scale": (16,),
    "double_blocks.0.img_attn.proj.weight": (32, 32),
    "double_blocks.0.img_attn.proj.bias": (32,),
    "double_blocks.0.img_mlp.0.weight": (128, 32),
    "double_blocks.0.img_mlp.0.bias": (128,),
    "double_blocks.0.img_mlp.2.weight": (32, 128),
    "double_blocks.0.img_mlp.2.bias": (32,),
    "double_blocks.0.txt_mod.lin.weight": (192, 32),
    "double_blocks.0.txt_mod.lin.bias": (192,),
    "double_blocks.0.txt_attn.qkv.weight": (96, 32),
    "double_blocks.0.txt_attn.qkv.bias": (96,),
    "double_blocks.0.txt_attn.norm.query_norm.scale": (16,),
    "double_blocks.0.txt_attn.norm.key_norm.scale": (16,),
    "double_blocks.0.txt_attn.proj.weight": (32, 32),
    "double_blocks.0.txt_attn.proj.bias": (32,),
    "double_blocks.0.txt_mlp.0.weight": (128, 32),
    "double_blocks.0.txt_mlp.0.bias": (128,),
    "double_blocks.0.txt_mlp.2.weight": (32, 128),
    "double_blocks.0.txt_mlp.2.bias": (32,),
    "single_blocks.0.linear1.weight": (224, 32),
    "single_blocks.0.linear1.bias": (224,),
    "single_blocks.0.linear2.weight": (32, 160),
    "single_blocks.0.linear2.bias": (32,),
    "single_blocks.0.norm.query_norm.scale": (16,),
    "single_blocks.0.norm.key_norm.scale": (16,),
    "single_blocks.0.modulation.lin.weight": (96, 32),
    "single_blocks.0.modulation.lin.bias": (96,),
    "final_layer.linear.weight": (4, 32),
    "final_layer.linear.bias": (4,),
    "final_layer.adaLN_modulation.1.weight": (64, 32),
    "final_layer.adaLN_modulation.1.bias": (64,),
}


def keys_and_shapes(params):
    return {key: tuple(w.shape) for key, w in Flux(params).state_dict().items()}


@pytest.fixture(scope="module")
def flux():
    return flux_at_random(tiny_params())


def test_the_lesson_has_59845696_parameters():
    with torch.device("meta"):
        flux = Flux(PRESETS["lesson"])
    assert sum(p.numel() for p in flux.parameters()) == 59_845_696


def test_state_dict_has_the_keys_and_shapes_of_bfl():
    one_of_each = tiny_params(depth=1, depth_single_blocks=1, guidance_embed=True)
    assert keys_and_shapes(one_of_each) == BFL_KEYS


def test_optional_parts_leave_nothing_behind():
    plain = tiny_params(depth=1, depth_single_blocks=1, qkv_bias=False)
    assert keys_and_shapes(plain) == {
        key: shape
        for key, shape in BFL_KEYS.items()
        if not key.startswith("guidance_in.") and not key.endswith("qkv.bias")
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


def test_axes_from_a_list_are_those_from_a_tuple():
    assert tiny_params(axes_dim=[4, 6, 6]) == tiny_params(axes_dim=(4, 6, 6))


def test_out_channels_are_those_that_come_in_unless_given():
    x = inputs(tiny_params())
    assert Flux(tiny_params())(**x).shape == (3, 15, 4)
    assert Flux(tiny_params(out_channels=9))(**x).shape == (3, 15, 9)


# Initialisation


@pytest.mark.parametrize("guidance_embed", [False, True], ids=["plain", "guidance"])
def test_a_new_network_predicts_exactly_0(guidance_embed):
    params = tiny_params(guidance_embed=guidance_embed)
    assert torch.equal(Flux(params)(**inputs(params)), torch.zeros(3, 15, 4))


def test_each_new_block_is_the_identity():
    flux = Flux(tiny_params())
    x = inputs(flux.params)
    img, txt, vec = torch.randn(3, 15, 32), torch.randn(3, 4, 32), torch.randn(3, 32)
    pe = flux.rotary(x["txt_ids"], x["img_ids"])
    for block in flux.double_blocks:
        img_out, txt_out = block(img, txt, vec, pe, None)
        assert torch.equal(img_out, img)
        assert torch.equal(txt_out, txt)
    both = torch.cat((txt, img), dim=1)
    for block in flux.single_blocks:
        assert torch.equal(block(both, vec, pe, None), both)


def test_initial_weights():
    """0 for modulations and output, N(0, 0.02) for embedders, Xavier uniform for the rest."""
    torch.manual_seed(0)
    flux = Flux(tiny_params(hidden_size=128, num_heads=8, guidance_embed=True))
    zeros = {"img_mod.lin", "txt_mod.lin", "modulation.lin"}
    zeros |= {"final_layer.linear", "final_layer.adaLN_modulation.1"}
    embedders = {
        f"{name}.{layer}"
        for name, module in flux.named_modules()
        if isinstance(module, MLPEmbedder)
        for layer in ("in_layer", "out_layer")
    }
    assert len(embedders) == 6
    for name, layer in flux.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        weight = layer.weight
        assert not layer.bias.any(), name
        if any(name.endswith(zero) for zero in zeros):
            assert not weight.any(), name
        elif name in embedders:
            assert weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert weight.abs().max() > 0.04, name  # a normal distribution has tails
        else:
            bound = math.sqrt(6 / sum(weight.shape))
            assert 0.95 * bound < weight.abs().max() <= bound, name
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1), name
    scales = [p for name, p in flux.named_parameters() if name.endswith("scale")]
    assert len(scales) == 2 * 4 + 2 * 2
    assert all((scale == 1).all() for scale in scales)


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
    shared = flux(**x)
    for_each = {key: x[key].expand(3, -1, -1) for key in ("img_ids", "txt_ids")}
    torch.testing.assert_close(flux(**{**x, **for_each}), shared, rtol=0, atol=1e-6)

    for_each["img_ids"] = for_each["img_ids"].clone()
    for_each["img_ids"][1, :, 1] *= 2
    changed = (flux(**{**x, **for_each}) - shared).abs().amax(dim=(1, 2))
    assert changed[1] > 1e-3
    assert changed[[0, 2]].max() < 1e-6


@torch.no_grad()
def test_without_positions_image_tokens_are_a_set(flux):
    """Permuting tokens and ids together permutes the output; the order itself means nothing."""
    x = inputs(flux.params)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    permuted = {**x, "img": x["img"][:, order], "img_ids": x["img_ids"][order]}
    torch.testing.assert_close(flux(**permuted), flux(**x)[:, order], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("embeds", "message"), [(True, "needs"), (False, "does not take")])
def test_guidance_is_given_exactly_where_the_network_has_an_input_for_it(embeds, message):
    flux = Flux(tiny_params(guidance_embed=embeds))
    x = inputs(flux.params)
    x["guidance"] = None if embeds else torch.ones(3)
    with pytest.raises(ValueError, match=message):
        flux(**x)


def test_timestep_embedding_is_cosines_then_sines_of_1000_t():
    t = [0.0, 0.123, 1.0]
    table = timestep_embedding(torch.tensor(t), 6)
    for row, time in zip(table, t, strict=True):
        angles = [1000 * time * 10_000 ** (-i / 3) for i in range(3)]
        by_hand = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        torch.testing.assert_close(row, torch.tensor(by_hand), rtol=0, atol=1e-4)


# The text mask


@torch.no_grad()
def test_masked_text_has_no_influence(flux):
    x = inputs(flux.params)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]).bool()
    other = torch.where(mask[..., None], x["txt"], 100 * torch.randn(x["txt"].shape))
    masked = flux(**x, txt_mask=mask)
    torch.testing.assert_close(flux(**{**x, "txt": other}, txt_mask=mask), masked)
    unmasked = flux(**x)
    torch.testing.assert_close(masked[0], unmasked[0], rtol=0, atol=1e-5)
    assert (masked - unmasked)[1:].abs().amax(dim=(1, 2)).min() > 1e-3


@torch.no_grad()
def test_text_padded_and_masked_is_text_alone(flux):
    alone, padded = inputs(flux.params, length=2), inputs(flux.params, length=7)
    padded |= {key: alone[key] for key in ("img", "y")}
    padded["txt"] = torch.cat((alone["txt"], padded["txt"][:, 2:]), dim=1)
    mask = (torch.arange(7) < 2).expand(3, -1)
    torch.testing.assert_close(flux(**padded, txt_mask=mask), flux(**alone), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_mask_of_nothing_changes_nothing(flux):
    x = inputs(flux.params)
    everything = torch.ones(3, 4, dtype=torch.bool)
    torch.testing.assert_close(flux(**x, txt_mask=everything), flux(**x), rtol=0, atol=1e-5)


# Gradients, dtypes, devices


@pytest.mark.parametrize("guidance_embed", [False, True], ids=["plain", "guidance"])
def test_every_parameter_learns(guidance_embed):
    flux = flux_at_random(tiny_params(guidance_embed=guidance_embed))
    flux(**inputs(flux.params)).square().mean().backward()
    without = [name for name, p in flux.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_a_new_network_wakes_from_its_output_inwards():
    """Zeroed layers let no gradient through until they have moved; the text's side is the last."""
    flux = Flux(tiny_params())
    x = inputs(flux.params)
    learning = []
    for _ in range(5):
        flux.zero_grad()
        (flux(**x) - x["img"]).square().mean().backward()
        learning.append({name for name, p in flux.named_parameters() if p.grad.any()})
        with torch.no_grad():
            for p in flux.parameters():
                p -= 0.1 * p.grad
    output, modulated, *_, everything = learning
    assert output == {"final_layer.linear.weight", "final_layer.linear.bias"}
    assert modulated > output
    assert "double_blocks.0.img_mod.lin.weight" in modulated
    assert "double_blocks.0.img_mlp.0.weight" not in modulated
    assert everything == {name for name, _ in flux.named_parameters()}


def test_a_copy_of_a_used_network_computes_the_same(flux):
    x = inputs(flux.params)
    assert torch.equal(copy.deepcopy(flux)(**x), flux(**x))


def relative_error(a, b):
    return ((a.float() - b).norm() / b.norm()).item()


@torch.no_grad()
def test_bfloat16_weights_are_close_to_float32(flux):
    x = inputs(flux.params)
    half = copy.deepcopy(flux).bfloat16()(**x)
    assert half.dtype == torch.bfloat16
    assert 0 < relative_error(half, flux(**x)) < 0.03


def test_bfloat16_autocast_is_close_to_float32_and_trains(flux):
    x = inputs(flux.params)
    with torch.autocast("cpu", torch.bfloat16):
        half = flux(**x)
    assert 0 < relative_error(half, flux(**x)) < 0.03
    network = copy.deepcopy(flux)
    with torch.autocast("cpu", torch.bfloat16):
        network(**x).float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in network.parameters())


DEVICES = [
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
    ),
    pytest.param(
        "mps", marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no MPS GPU")
    ),
]


@torch.no_grad()
@pytest.mark.gpu
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.03)], ids=str
)
def test_a_gpu_computes_what_the_cpu_computes(flux, device, dtype, tolerance):
    x = inputs(flux.params)
    on_gpu = {key: None if v is None else v.to(device) for key, v in x.items()}
    there = copy.deepcopy(flux).to(device, dtype)(**on_gpu)
    assert there.device.type == device
    assert relative_error(there.cpu(), flux(**x)) < tolerance


@torch.no_grad()
@pytest.mark.gpu
@pytest.mark.parametrize("device", DEVICES)
def test_autocast_on_a_gpu_is_close_to_float32(flux, device):
    x = inputs(flux.params)
    on_gpu = {key: None if v is None else v.to(device) for key, v in x.items()}
    network = copy.deepcopy(flux).to(device)
    with torch.autocast(device, torch.bfloat16):
        half = network(**on_gpu)
    assert relative_error(half.cpu(), flux(**x)) < 0.03


def test_params_of_other_sizes_do_not_disturb_a_preset():
    small = replace(PRESETS["lesson"], depth=1)
    assert (small.depth, PRESETS["lesson"].depth) == (1, 6)
