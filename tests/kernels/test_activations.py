"""Blocks that compute again what they did not keep: the same bits, and less in memory."""

import pytest
import torch
from helpers import randomise
from torch.autograd.graph import saved_tensors_hooks

from fluxsmith.training.run import build_trainer


def step(toy, kind, kernels):
    """The gradients of a step, and the bytes that were kept for its backward pass."""
    config = toy(f"parallel.checkpoint_activations={kind}", f"train.kernels={kernels}")
    trainer = build_trainer(config, torch.device("cpu"))
    randomise(trainer.pipeline)
    trainer.optimiser.step = lambda: None
    trainer.optimiser.zero_grad = lambda **_: None
    kept = {}

    def note(x):
        kept[x.data_ptr()] = x.numel() * x.element_size()
        return x

    with saved_tensors_hooks(note, lambda x: x):
        trainer.train_step()
    return {n: p.grad for n, p in trainer.pipeline.named_parameters()}, sum(kept.values())


@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_the_same_gradients_from_less_memory(toy, kernels):
    gradients, bytes_ = {}, {}
    for kind in ("none", "blocks", "selective"):
        gradients[kind], bytes_[kind] = step(toy, kind, kernels)
    for kind in ("blocks", "selective"):
        assert all(torch.equal(g, gradients[kind][n]) for n, g in gradients["none"].items())
        assert bytes_[kind] < 0.8 * bytes_["none"]
