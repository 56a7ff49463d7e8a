"""Weights that oneDNN keeps laid out while a network draws: the same numbers, and none that are out
of date."""

import pytest
import torch

from fluxsmith import Pipeline
from fluxsmith.compiling import compiled, prepare_compiling
from fluxsmith.model import layouts, onednn
from fluxsmith.model.flux import Flux
from fluxsmith.model.streaming import stream_blocks
from fluxsmith.pipeline import Edit
from tests.flux_at_random import flux_at_random, inputs, tiny_params
from tests.helpers import randomise

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, onednn._OPERATOR),
    reason="this build of torch has no oneDNN",
)


@pytest.fixture(autouse=True)
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product goes the way that large ones go on processors where it is the quicker one."""
    monkeypatch.setattr(onednn, "WORTH", 0)
    monkeypatch.setattr(onednn, "ONEDNN_IS_QUICKER", True)


@pytest.fixture
def network() -> Flux:
    return flux_at_random(tiny_params())


def copies() -> dict[object, list[torch.Tensor]]:
    """What the layouts in force have made so far."""
    kept = layouts._LAYOUTS.get()
    return {} if kept is None else kept._pieces


def kept_weights() -> list[torch.Tensor]:
    """Those that were laid out."""
    kept = layouts._LAYOUTS.get()
    return [] if kept is None else [kept._weights[key[0]] for key in kept._pieces]


@torch.no_grad()
def test_the_network_is_the_same_with_its_weights_laid_out(network: Flux) -> None:
    given = inputs(network.params)
    plain = network(**given)
    with layouts.keeping_layouts(network, layouts.OFTEN):
        first = network(**given)
        made = dict(copies())
        again = network(**given)
        assert copies().keys() == made.keys()
        assert all(copies()[key] is pieces for key, pieces in made.items())  # laid out once
    pieces = [piece for of in made.values() for piece in of]
    assert all(piece.is_mkldnn for piece in pieces)
    matrices = [p for p in network.parameters() if p.ndim == 2]
    assert sum(piece.numel() for piece in pieces) == sum(m.numel() for m in matrices)
    torch.testing.assert_close(first, plain, atol=1e-5, rtol=1e-5)
    assert torch.equal(again, first)


@torch.no_grad()
def test_compiled_blocks_find_them_too(network: Flux) -> None:
    if reason := prepare_compiling(torch.device("cpu")):
        pytest.skip(f"nothing can be compiled here: {reason}")
    given = inputs(network.params)
    plain = network(**given)
    torch.compiler.reset()
    with layouts.keeping_layouts(network, layouts.OFTEN), compiled(network):
        torch.testing.assert_close(network(**given), plain, atol=1e-5, rtol=1e-5)
        found = {id(weight) for weight in kept_weights()}
    matrices = {id(p) for name, p in network.named_parameters() if "blocks" in name and p.ndim == 2}
    assert matrices <= found


@torch.no_grad()
def test_changed_weights_are_seen_by_the_next_run(network: Flux) -> None:
    given = inputs(network.params)
    for _ in range(2):
        with layouts.keeping_layouts(network, layouts.OFTEN):
            kept = network(**given)
        torch.testing.assert_close(kept, network(**given), atol=1e-5, rtol=1e-5)
        for parameter in network.parameters():
            parameter.mul_(1.1)
    assert not torch.allclose(kept, network(**given), atol=1e-3)


@torch.no_grad()
def test_another_networks_weights_go_without(network: Flux) -> None:
    other = flux_at_random(tiny_params())
    with layouts.keeping_layouts(network, layouts.OFTEN):
        other(**inputs(other.params))
        assert not copies()


def test_gradients_are_the_same_with_weights_laid_out(network: Flux) -> None:
    given = inputs(network.params)
    weights = list(network.parameters())
    plain = torch.autograd.grad(network(**given).square().sum(), weights)
    with layouts.keeping_layouts(network, layouts.OFTEN):
        kept = torch.autograd.grad(network(**given).square().sum(), weights)
        assert copies()
    for one, other in zip(kept, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_few_passes_and_large_networks_go_without(
    network: Flux, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = network.img_in.weight
    with layouts.keeping_layouts(network, layouts.OFTEN):
        assert laid_out(weight)
        with layouts.keeping_layouts(network, layouts.OFTEN - 1):
            assert not laid_out(weight)
        assert laid_out(weight)
        monkeypatch.setattr(layouts, "ROOM", sum(p.nbytes for p in network.parameters()) - 1)
        with layouts.keeping_layouts(network, layouts.OFTEN):
            assert not laid_out(weight)
    assert not laid_out(weight)


def laid_out(weight: torch.Tensor) -> bool:
    x = torch.empty(8, weight.shape[1])
    return layouts.laid_out(weight, [len(weight)], 0, x)[0].is_mkldnn


def test_pictures_are_the_same_and_nothing_is_kept(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    randomise(pipeline)
    drawn, counts = [], []
    for often in (5, 6):
        monkeypatch.setattr(layouts, "OFTEN", often)
        drawn.append(
            pipeline.generate(
                ["3", "four"], steps=5, on_step=lambda *_: counts.append(len(copies()))
            )
        )
    assert counts[5] > 0
    assert counts[6:] == [0] * 6
    assert not copies()
    torch.testing.assert_close(*drawn, atol=1e-5, rtol=1e-5)


def test_a_streamed_network_keeps_nothing(pipeline: Pipeline) -> None:
    counts: list[int] = []
    pipeline.generate(["3"], steps=8, on_step=lambda *_: counts.append(len(copies())))
    assert max(counts) > 0
    stream_blocks(pipeline.network, torch.device("cpu"), torch.float32)
    counts.clear()
    pipeline.generate(["3"], steps=8, on_step=lambda *_: counts.append(len(copies())))
    assert counts == [0] * 9


@pytest.mark.parametrize(
    ("solver", "strength", "kept"), [("euler", 1, False), ("heun", 1, True), ("heun", 0.2, False)]
)
def test_passes_are_counted_as_they_come(
    pipeline: Pipeline, solver: str, strength: float, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "OFTEN", 9)
    edit = Edit(torch.zeros(pipeline.latent_shape), strength=strength)
    counts: list[int] = []
    pipeline.generate(
        ["3"],
        steps=8,
        solver=solver,
        edit=edit,
        on_step=lambda *_: counts.append(len(copies())),
    )
    assert (max(counts) > 0) is kept


@torch.no_grad()
def test_the_limit_is_on_the_copies(network: Flux, monkeypatch: pytest.MonkeyPatch) -> None:
    network.bfloat16()
    copied = 4 * sum(p.numel() for p in network.parameters())
    for room, wanted in ((copied, True), (copied - 1, False)):
        monkeypatch.setattr(layouts, "ROOM", room)
        with layouts.keeping_layouts(network, layouts.OFTEN):
            assert (layouts._LAYOUTS.get() is not None) is wanted
