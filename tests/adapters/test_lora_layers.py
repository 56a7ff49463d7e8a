"""A change beside a weight is the change in the weight; peft computes and learns the same."""

from itertools import chain

import pytest
import torch
from flux_at_random import flux_at_random, inputs, tiny_params
from helpers import assert_agree

from fluxsmith.adapters.layers import (
    Float8Linear,
    LoraLinear,
    add_changes,
    change_of,
    keep_in_float8,
    lora_layers,
    merge,
    merged,
    without_adapters,
)
from fluxsmith.adapters.lora import Settings
from fluxsmith.errors import UserError
from fluxsmith.kernels.accelerate import FAST, accelerate, backend

PARAMS = tiny_params(guidance_embed=True)


def with_lora(seed=0, **settings):
    """A network with LoRA layers that change something."""
    network = flux_at_random(PARAMS)
    Settings(**{"rank": 3, "targets": ["all"], **settings}).attach(network, seed)
    g = torch.Generator().manual_seed(seed)
    for _, layer in lora_layers(network):
        layer.lora_B.data.copy_(0.3 * torch.randn(layer.lora_B.shape, generator=g))
    return network.eval()


def changes(network):
    return [change_of(*pair) for pair in lora_layers(network)]


@torch.no_grad()
def out(network):
    return network(**inputs(PARAMS)).float()


def test_a_new_lora_changes_nothing_and_only_it_is_trained():
    network = flux_at_random(PARAMS)
    before = out(network)
    Settings(targets=["all"]).attach(network, seed=0)
    assert torch.equal(out(network), before)
    trained = {name.rpartition(".")[2] for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"lora_A", "lora_B"}


def test_beside_the_weights_is_as_in_them_and_off_is_the_base():
    network, base = with_lora(alpha=1.5), flux_at_random(PARAMS)
    beside = out(network)
    assert (beside - out(base)).abs().mean() > 0.05
    with without_adapters(network):
        assert torch.equal(out(network), out(base))
    assert torch.equal(out(network), beside)
    merge(network)
    assert network.state_dict().keys() == base.state_dict().keys()
    assert_agree(out(network), beside, within=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_loras_add_up(dtype):
    """In float32 in the weights, in bfloat16 beside them, where none is rounded away."""
    both = [changes(with_lora()), changes(with_lora(seed=5, targets=["attention"], alpha=1.0))]
    network, base = (flux_at_random(PARAMS).to(dtype) for _ in range(2))
    for own in both:
        add_changes(network, own)
    beside = changes(network)
    assert bool(beside) == (dtype == torch.bfloat16)
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Linear):
            start = base.get_submodule(name).weight.float()
            expected = merged(start, [c for c in chain(*both) if c.layer == name])
            found = merged(layer.weight.float(), [c for c in beside if c.layer == name])
            assert_agree(found, expected, within=1e-5)


@pytest.mark.parametrize(
    ("targets", "blocks", "expected"),
    [
        (["attention"], ["single"], {("linear1", 0, 96)}),
        (["mlp"], ["single"], {("linear1", 96, 224), ("linear2", 0, 32)}),
        (["mlp", "attention"], ["single"], {("linear1", 0, 224), ("linear2", 0, 32)}),
        (["modulation"], ["single", "dual"], {
            ("modulation.lin", 0, 96), ("img_mod.lin", 0, 192), ("txt_mod.lin", 0, 192),
        }),
        (["attention"], ["dual.1"], {
            ("img_attn.qkv", 0, 96), ("img_attn.proj", 0, 32),
            ("txt_attn.qkv", 0, 96), ("txt_attn.proj", 0, 32),
        }),
    ],
)  # fmt: skip
def test_plain_names_choose_layers_and_rows(targets, blocks, expected):
    found = changes(with_lora(targets=targets, blocks=blocks))
    stacks = {"dual": "double_blocks", "single": "single_blocks"}
    assert {(c.layer.split(".", 2)[2], c.start, c.stop) for c in found} == expected
    assert {c.layer.split(".")[0] for c in found} == {stacks[b.split(".")[0]] for b in blocks}
    if blocks == ["dual.1"]:
        assert {c.layer.split(".")[1] for c in found} == {"1"}


def test_all_is_every_linear_layer():
    network = flux_at_random(PARAMS)
    linear = {name for name, m in network.named_modules() if isinstance(m, torch.nn.Linear)}
    assert {change.layer for change in changes(with_lora(targets=["all"]))} == linear


@pytest.mark.parametrize("blocks", ["dual.2", "single.0-2", "single.1-0"])
def test_blocks_that_are_not_there_are_named(blocks):
    with pytest.raises(UserError, match=rf"train.adapter.blocks={blocks}: the network has 2"):
        with_lora(blocks=[blocks])


def test_a_part_of_the_rows_changes_only_these():
    network = with_lora(targets=["attention"], blocks=["single"])
    layer = network.get_submodule("single_blocks.0.linear1")
    x = torch.randn(5, 32)
    change = layer(x) - torch.nn.functional.linear(x, layer.weight, layer.bias)
    assert change[:, :96].abs().min() > 0 and not change[:, 96:].any()


def test_kernels_leave_changed_layers_as_they_are():
    """Speed never goes around a LoRA, and the layers without one are as quick as before."""
    network = with_lora(targets=["attention"])
    expected = out(network)
    changed = [name for name, _ in lora_layers(network)]
    accelerate(network)
    assert changed and all(type(network.get_submodule(name)) is LoraLinear for name in changed)
    fast = {kind for kinds in FAST.values() for kind in kinds}
    quick = any(type(module) in fast for module in network.modules())
    assert quick == (backend(torch.device("cpu")) != "torch")
    assert_agree(out(network), expected, within=1e-5)
    accelerate(network, "off")
    assert torch.equal(out(network), expected)


def test_float8_keeps_what_was_float8_and_makes_its_gradient_again():
    linear = torch.nn.Linear(32, 24)
    rounded = torch.nn.Linear(32, 24)
    rounded.load_state_dict(linear.state_dict())
    rounded.weight.data = linear.weight.data.to(torch.float8_e4m3fn).float()
    keep_in_float8([rounded])
    assert rounded.weight.dtype == torch.float8_e4m3fn
    x = torch.randn(7, 32, requires_grad=True)
    weight = linear.weight.data.to(torch.float8_e4m3fn).float()
    expected = torch.nn.functional.linear(x, weight, linear.bias)
    assert torch.equal(rounded(x), expected)
    (found,) = torch.autograd.grad(rounded(x).square().sum(), x)
    (right,) = torch.autograd.grad(expected.square().sum(), x)
    assert torch.equal(found, right)
    keep_in_float8([linear])
    assert linear.weight.float().abs().amax(1).min() > 200  # its range is used in every row


@torch.no_grad()
def test_layers_kept_in_float8_are_merged_with_their_scales():
    """Changed and unchanged ones; into float8 itself nothing is."""
    network = with_lora(base_dtype="float8", targets=["attention"], blocks=["single"])
    kept = {n: m for n, m in network.named_modules() if hasattr(m, "weight_scale")}
    assert len(kept) > len(changes(network)) > 0
    expected = {name: layer.weight.float() * layer.weight_scale for name, layer in kept.items()}
    for change in changes(network):
        expected[change.layer][change.start : change.stop] += change.change()
    with pytest.raises(UserError, match="give --dtype bfloat16"):
        merge(network)
    merge(network, torch.float32)
    assert not any(isinstance(m, Float8Linear | LoraLinear) for m in network.modules())
    assert network.state_dict().keys() == flux_at_random(PARAMS).state_dict().keys()
    for name, weight in expected.items():
        assert torch.equal(network.get_submodule(name).weight, weight)


def test_peft_computes_and_learns_the_same():
    """Outputs and gradients, with peft's own layers around the same network."""
    peft = pytest.importorskip("peft")
    ours, theirs = (
        with_lora(alpha=1.5, rank=3, targets=["attention", "mlp"]),
        flux_at_random(PARAMS),
    )
    layers = dict(lora_layers(ours))
    config = peft.LoraConfig(r=3, lora_alpha=1.5, target_modules=[*layers])
    theirs = peft.inject_adapter_in_model(config, theirs).eval()
    for name, layer in layers.items():
        module = theirs.get_submodule(name)
        module.lora_A.default.weight.data.copy_(layer.lora_A)
        module.lora_B.default.weight.data.copy_(layer.lora_B)
    results = [network(**inputs(PARAMS)) for network in (ours, theirs)]
    assert_agree(*results, within=1e-5)
    for result in results:
        result.square().sum().backward()
    for name, layer in layers.items():
        module = theirs.get_submodule(name)
        for own, other in ((layer.lora_A, module.lora_A), (layer.lora_B, module.lora_B)):
            expected = other.default.weight.grad
            assert float((own.grad - expected).norm() / expected.norm()) < 1e-4
