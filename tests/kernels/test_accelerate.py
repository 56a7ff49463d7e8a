"""The one door to our C++: the same numbers with it and without it, and what it leaves plain."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from flux_at_random import flux_at_random, inputs, tiny_params
from helpers import randomise
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize

from fluxsmith.kernels.accelerate import accelerate, accelerated
from fluxsmith.kernels.cpu import onednn
from fluxsmith.model.attention import QKNorm
from fluxsmith.model.flux import Flux
from fluxsmith.pipeline import Pipeline
from fluxsmith.sampling.generate import Sampler
from fluxsmith.training.optimiser import OPTIMISERS
from fluxsmith.training.run import build_trainer

PACKAGE = Path(__file__).parents[2] / "fluxsmith"


@pytest.fixture
def network(machine: str) -> Flux:
    """Its heads and widths are of sizes that the C++ takes; every product is large enough."""
    return flux_at_random(tiny_params(axes_dim=(4, 6, 6)))


def kinds(network: nn.Module) -> set[str]:
    """The classes that are there in place of others."""
    return {type(m).__name__ for m in network.modules() if type(m).__name__.startswith("Fast")}


def results(network: Flux, **changed: Tensor) -> list[Tensor]:
    """What it predicts, and the gradient of every weight."""
    network.zero_grad()
    out = network(**{**inputs(network.params), **changed})
    out.square().mean().backward()
    return [out.detach(), *(p.grad for p in network.parameters())]


def assert_close(ours: list[Tensor], plain: list[Tensor], within: float = 1e-5) -> None:
    for one, other in zip(ours, plain, strict=True):
        scale = max(1e-3, float(other.abs().max()))
        torch.testing.assert_close(one, other, atol=within * scale, rtol=within)


MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]).bool()


@pytest.mark.parametrize("changed", [{}, {"txt_mask": MASK}], ids=["plain", "masked"])
def test_the_network_is_the_same_either_way(network, changed, machine) -> None:
    plain = results(network, **changed)
    accelerate(network)
    own = {"FastMLP", "FastDoubleStreamBlock", "FastSingleStreamBlock"}
    assert kinds(network) == own | ({"FastLinear"} if machine == "oneDNN" else set())
    assert_close(results(network, **changed), plain)
    with torch.no_grad():
        assert_close([network(**inputs(network.params), **changed)], plain[:1])
    accelerate(network, "off")
    assert not kinds(network)
    assert all(map(torch.equal, results(network, **changed), plain))


@pytest.mark.usefixtures("machine")
def test_training_and_drawing_agree_with_and_without(toy, monkeypatch) -> None:
    # Not AdamW, which divides each gradient by its own size, so that rounding alone moves weights.
    monkeypatch.setitem(OPTIMISERS, "sgd", lambda groups, _: torch.optim.SGD(groups, lr=0.1))
    found = []
    for kernels in ("auto", "off"):
        config = toy(f"train.kernels={kernels}", "train.optimiser=sgd")
        trainer = build_trainer(config, torch.device("cpu"))
        randomise(trainer.pipeline)
        assert bool(kinds(trainer.pipeline.network)) is (kernels == "auto")
        for _ in range(3):
            trainer.train_step()
        sampler = Sampler(trainer.pipeline, kernels=kernels)
        pictures = sampler.generate(["3", "four"], steps=9, guidance=2.0)
        found.append([pictures, *(p.detach() for p in trainer.pipeline.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_weights_are_packed_for_many_evaluations_and_never_out_of_date(network) -> None:
    given = inputs(network.params)
    for _ in range(2):
        plain = network(**given)
        for evaluations in (0, onednn.OFTEN):
            with accelerated(network, evaluations=evaluations):
                assert kinds(network)
                for _ in range(2):
                    torch.testing.assert_close(network(**given), plain, atol=1e-5, rtol=1e-5)
            assert not kinds(network)
        for parameter in network.parameters():
            parameter.mul_(1.1)


def test_copies_and_pickles_of_an_accelerated_network_are_the_network(network) -> None:
    plain, state = results(network), network.state_dict()
    accelerate(network)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert kinds(other) == kinds(network)
        assert other.state_dict().keys() == state.keys()
        assert_close(results(other), plain)


# What it leaves plain


class DoubledQueries(QKNorm):
    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        q, k = super().forward(q, k)
        return 2 * q, k


class WithLowRank(nn.Module):
    """A layer with something added, as adapters wrap layers."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.weight = layer.weight
        self.added = nn.Parameter(torch.randn(layer.out_features, layer.in_features) / 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.added.mT


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def wrap_layers(network: Flux) -> None:
    double, single = network.double_blocks[0], network.single_blocks[0]
    double.img_mlp[0] = WithLowRank(double.img_mlp[0])
    double.img_attn.qkv = WithLowRank(double.img_attn.qkv)
    single.linear1 = WithLowRank(single.linear1)
    network.single_blocks[1].linear2 = WithLowRank(network.single_blocks[1].linear2)


def replace_norms(network: Flux) -> None:
    network.double_blocks[0].img_attn.norm = DoubledQueries(16)
    network.single_blocks[0].norm = DoubledQueries(16)


def parametrise(network: Flux) -> None:
    parametrize.register_parametrization(network.single_blocks[0].linear1, "weight", Doubled())
    parametrize.register_parametrization(network.double_blocks[0].txt_mlp[0], "weight", Doubled())


def override_a_forward(network: Flux) -> None:
    layer = network.single_blocks[0].linear1
    layer.forward = lambda x: 2 * nn.Linear.forward(layer, x)


@pytest.mark.parametrize(
    "change", [wrap_layers, replace_norms, parametrise, override_a_forward, Flux.double]
)
def test_what_somebody_changed_counts(network, change) -> None:
    change(network)
    with torch.no_grad():
        given = inputs(network.params)
        plain = network(**given)
        accelerate(network)
        torch.testing.assert_close(network(**given), plain, atol=1e-5, rtol=1e-5)


def test_the_attention_of_a_wrapped_block_stays_fused(network) -> None:
    wrap_layers(network)
    accelerate(network)
    assert [type(b).__name__ for b in network.single_blocks][:2] == ["FastAttentionBlock"] * 2


@pytest.mark.parametrize(
    "where",
    [
        "single_blocks.0.linear1",
        "single_blocks.0.norm.query_norm",
        "double_blocks.0.img_mlp",
        "double_blocks.0.img_mlp.1",
        "double_blocks.0.txt_attn.qkv",
    ],
)
def test_hooks_are_called(network, where: str) -> None:
    heard = []
    network.get_submodule(where).register_forward_hook(lambda *_: heard.append(1))
    accelerate(network)
    network(**inputs(network.params))
    assert heard == [1]
    for_all = nn.modules.module.register_module_forward_hook(lambda *_: heard.append(1))
    try:
        accelerate(network)
    finally:
        for_all.remove()
    assert not kinds(network)


@pytest.mark.parametrize(
    "where",
    [
        "single_blocks.0.linear1", "single_blocks.0.linear2", "single_blocks.0.norm.key_norm",
        "double_blocks.0.img_mlp.0", "double_blocks.0.img_mlp.1", "double_blocks.0.txt_attn.norm",
    ],
)  # fmt: skip
def test_hooks_that_come_later_are_called(network, where: str) -> None:
    accelerate(network)
    heard = []
    network.get_submodule(where).register_forward_hook(lambda *_: heard.append(1))
    network(**inputs(network.params))
    assert heard == [1]


def test_a_layer_that_is_put_in_place_of_another_later_is_called(network) -> None:
    accelerate(network)
    given = inputs(network.params)
    with torch.no_grad():
        before = network(**given)
        block = network.single_blocks[0]
        block.linear1 = Around(block.linear1)
        after = network(**given)
        accelerate(network, "off")
        torch.testing.assert_close(after, network(**given), atol=1e-5, rtol=1e-5)
    assert (after - before).abs().max() > 1e-3


class Around(nn.Module):
    """A wrapper that shows what it wraps, as those of LoRA libraries do."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.weight, self.bias, self.out_features = layer.weight, layer.bias, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.layer(x)


# Calls that the C++ can't take


def test_torch_func_and_forward_mode_take_torchs_operations(network) -> None:
    accelerate(network)
    given = inputs(network.params)
    img = given.pop("img")

    def velocity(x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return network(img=x, **given)

    along = torch.randn(img.shape, generator=torch.Generator().manual_seed(0))
    _, forward = torch.func.jvp(velocity, (img,), (along,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(img, along)
        other = torch.autograd.forward_ad.unpack_dual(velocity(dual)).tangent
    torch.testing.assert_close(forward, other)
    accelerate(network, "off")
    assert torch.equal(torch.func.jvp(velocity, (img,), (along,))[1], forward)


def test_a_gradient_penalty_is_the_same_either_way(network) -> None:
    found = []
    for kernels in ("auto", "off"):
        accelerate(network, kernels)
        network.zero_grad()
        given = inputs(network.params)
        given["img"].requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):
            v = network(**given)
            (slope,) = torch.autograd.grad(v.square().sum(), given["img"], create_graph=True)
            slope.square().sum().backward()
        zero = torch.zeros(())  # of biases that no second derivative meets
        found.append([zero if p.grad is None else p.grad for p in network.parameters()])
    assert_close(*found, within=1e-4)


def test_an_exported_program_has_torchs_operations_alone(network) -> None:
    if not hasattr(torch.compiler, "is_exporting"):
        pytest.skip("this torch can't tell")
    accelerate(network)
    exported = torch.export.export(network, (), inputs(network.params), strict=False)
    assert "fluxsmith" not in str(exported.graph)


@torch.no_grad()
def test_other_calls_take_torchs_operations(network) -> None:
    """bfloat16 by autocast, ids for each sample, more tokens than fit the caches."""
    given = inputs(network.params)
    each = {key: given[key].expand(3, -1, -1) for key in ("img_ids", "txt_ids")}
    many = inputs(network.params, batch=1, rows=33, columns=32)
    for call in (given | each, many):
        accelerate(network, "off")
        plain = network(**call)
        accelerate(network)
        torch.testing.assert_close(network(**call), plain, atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = network(**given)
        accelerate(network, "off")
        assert torch.equal(network(**given), half)


@pytest.mark.slow
def test_blocks_compile_as_a_whole(network) -> None:
    torch.compiler.reset()
    accelerate(network)
    plain = results(network)
    for block in network.blocks:
        block.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    assert_close(results(network), plain)


def run(script: str, **environment: str) -> str:
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_without_a_compiler_torch_serves(tmp_path) -> None:
    script = (
        "import torch; from fluxsmith.kernels.accelerate import accelerate, backend\n"
        "from flux_at_random import flux_at_random, inputs, tiny_params\n"
        "network = flux_at_random(tiny_params(axes_dim=(4, 6, 6)))\n"
        "accelerate(network)\n"
        "assert network(**inputs(network.params)).isfinite().all()\n"
        "print(backend(torch.device('cpu')))"
    )
    path = os.pathsep.join([str(PACKAGE.parent), str(PACKAGE.parent / "tests")])
    cache = str(tmp_path)
    assert run(script, CXX="/no/such", FLUXSMITH_CACHE=cache, PYTHONPATH=path) == "torch"
    assert not list(tmp_path.rglob("*.so"))


# Who knows of it


def test_nothing_but_training_sampling_and_the_command_line_imports_the_kernels() -> None:
    allowed = {"kernels", "training", "distillation", "planning", "sampling", "studies", "cli"}
    offload = "fluxsmith.kernels.offload"  # where weights lie, not how they are multiplied
    found = set()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8").replace(offload, "")
        if "fluxsmith.kernels" in text and path.relative_to(PACKAGE).parts[0] not in allowed:
            found.add(str(path.relative_to(PACKAGE)))
    assert not found


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("fluxsmith.model.flux", "torch._dynamo"),
        ("fluxsmith.kernels.accelerate", "torch._dynamo"),
        ("fluxsmith.kernels.threads", "torch"),  # threads are bounded before torch is imported
    ],
)
def test_importing_it_imports_nothing_that_is_slow(module: str, without: str) -> None:
    assert run(f"import sys, {module}; print({without!r} in sys.modules)") == "False"


def test_an_offloaded_network_draws_the_same(pipeline: Pipeline) -> None:
    from fluxsmith.kernels.offload import offload_blocks

    plain = Sampler(pipeline, kernels="off").generate(["3"], steps=8)
    offload_blocks(pipeline.network, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(Sampler(pipeline).generate(["3"], steps=8), plain, atol=1e-5, rtol=0)
