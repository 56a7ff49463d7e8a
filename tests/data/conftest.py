import struct

import pytest
import torch
from torch import Tensor

from fluxsmith.data import mnist


@pytest.fixture
def idx():
    """idx(array): a uint8 tensor as the bytes of an IDX file."""

    def idx(array: Tensor) -> bytes:
        header = bytes((0, 0, 8, array.dim())) + struct.pack(f">{array.dim()}I", *array.shape)
        return header + array.numpy().tobytes()

    return idx


@pytest.fixture
def mnist_arrays() -> dict[str, Tensor]:
    """A tiny MNIST: five images to train with and three to test, under the names of its files."""
    drawn = torch.randint(256, (8, 28, 28), generator=torch.Generator().manual_seed(0))
    images = drawn.to(torch.uint8)
    return {
        "train-images-idx3-ubyte": images[:5],
        "train-labels-idx1-ubyte": torch.tensor([5, 0, 4, 1, 9], dtype=torch.uint8),
        "t10k-images-idx3-ubyte": images[5:],
        "t10k-labels-idx1-ubyte": torch.tensor([7, 2, 1], dtype=torch.uint8),
    }


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, no other data, and no network: what a test gets unless it says so."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FLUXSMITH_CACHE", str(folder))
    monkeypatch.delenv("FLUXSMITH_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(mnist, "MIRRORS", ("http://127.0.0.1:9/",))
    return folder
