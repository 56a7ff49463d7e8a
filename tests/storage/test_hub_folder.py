"""A hub id where a folder is taken, by the hub's own client and a cache on this machine."""

import pytest
import torch
from flux_at_random import flux_at_random, tiny_params
from tiny_autoencoder import tiny_network

from fluxsmith.cli import main
from fluxsmith.errors import UserError
from fluxsmith.interop.lora_files import read_lora, read_specs
from fluxsmith.interop.read_weights import read_weights
from fluxsmith.storage.model_parts import read_part
from fluxsmith.storage.tensor_files import write_tensors

constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """put(name, {file: tensors}) puts a repository into the cache; nothing can be fetched."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

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


@pytest.mark.parametrize("file", ["pytorch_lora_weights", "adapter_model", "ink-style"])
def test_a_lora_is_taken_by_its_hub_id(cache, tmp_path, capsys, file):
    """Its own file, whatever else there is; with a weight, shown and converted."""
    name = "transformer.transformer_blocks.0.attn.to_q"
    pair = {f"{name}.lora_A.weight": torch.ones(2, 32), f"{name}.lora_B.weight": torch.ones(32, 2)}
    cache("fox/ink", {f"{file}.safetensors": pair, f"checkpoint-9/{file}.safetensors": {}})
    (lora,) = read_specs(["fox/ink:0.5"])
    assert torch.equal(lora.changes[0].change(), torch.full((32, 32), 1.0))
    for typed in ("lora show fox/ink", f"lora convert fox/ink {tmp_path / 'ink.safetensors'}"):
        with pytest.raises(SystemExit) as ended:
            main(typed.split())
        assert not ended.value.code, capsys.readouterr().err
    assert read_lora(tmp_path / "ink.safetensors").form == "diffusers"


def test_what_is_neither_here_nor_on_the_hub_is_named(cache):
    for read in (read_weights, read_lora, lambda name: read_part(name, "autoencoder")):
        with pytest.raises(UserError, match=r"fox/none: there is no such file or folder") as raised:
            read("fox/none")
        assert "\n" not in str(raised.value)
