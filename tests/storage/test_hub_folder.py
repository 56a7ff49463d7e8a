"""A hub id where a folder is taken, by the hub's own client and a cache on this machine."""

import pytest
import torch
from flux_at_random import flux_at_random, tiny_params
from tiny_autoencoder import tiny_network

from fluxsmith.errors import UserError
from fluxsmith.interop.read_weights import read_weights
from fluxsmith.storage.model_parts import read_part
from fluxsmith.storage.tensor_files import write_tensors

hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """put(name, {file: tensors}) puts a repository into the cache; nothing can be fetched."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)

    def put(name, files):
        place = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("c0ffee")
        for i, (file, tensors) in enumerate(files.items()):
            blob, link = place / "blobs" / str(i), place / "snapshots" / "c0ffee" / file
            for path in (blob, link):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(blob, tensors, {})
            link.symlink_to(blob)

    return put


def test_a_hub_id_is_the_folder_in_the_cache(cache):
    network = flux_at_random(tiny_params()).state_dict()
    vae = tiny_network().state_dict()
    name = "diffusion_pytorch_model.safetensors"
    cache("fox/foxes.1-dev", {f"transformer/{name}": network, f"vae/{name}": vae})
    read = read_weights("fox/foxes.1-dev")
    assert all(torch.equal(read.network[name], tensor) for name, tensor in network.items())
    assert read.metadata["source"]["base_model"] == "fox/foxes.1-dev"
    found, _ = read_part("fox/foxes.1-dev", "autoencoder")
    assert found.keys() == vae.keys()


def test_a_repository_with_one_file_is_that_file(cache):
    network = flux_at_random(tiny_params()).state_dict()
    cache("fox/single", {"flux.safetensors": network})
    assert read_weights("fox/single").network.keys() == network.keys()


def test_what_is_neither_here_nor_on_the_hub_is_named(cache):
    for read in (read_weights, lambda name: read_part(name, "autoencoder")):
        with pytest.raises(UserError, match=r"fox/none: there is no such file or folder") as raised:
            read("fox/none")
        assert "\n" not in str(raised.value)
