"""Our C++ is tested as it is compiled for AVX-512 and for AVX2, on processors that have both."""

import shutil
from collections.abc import Iterator

import pytest
import torch

from fluxsmith.kernels.cpu import features, onednn


@pytest.fixture(params=["avx512", "avx2"])
def vectors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The vectors that the C++ is compiled for meanwhile."""
    return compile_for(str(request.param), monkeypatch)


@pytest.fixture(params=["oneDNN", "torch"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The library that multiplies matrices meanwhile, however small."""
    return multiply_by(str(request.param), monkeypatch)


@pytest.fixture(params=[("avx512", "oneDNN"), ("avx2", "torch")], ids=["avx512", "avx2"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both together, as on AMD's processors with AVX-512 and on those with AVX2: the library."""
    vectors, products = request.param
    compile_for(vectors, monkeypatch)
    return multiply_by(products, monkeypatch)


def compile_for(vectors: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(features.FORCE, vectors)
    if features.vectors() != vectors:
        pytest.skip(f"the processor has no {vectors}")
    if not shutil.which("g++"):
        pytest.skip("there is no g++")
    return vectors


def multiply_by(products: str, monkeypatch: pytest.MonkeyPatch) -> str:
    if products == "oneDNN" and not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(onednn, "ONEDNN_IS_QUICKER", products == "oneDNN")
    monkeypatch.setattr(onednn, "WORTH", 0)
    return products


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
