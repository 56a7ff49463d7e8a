"""Which files of a folder are read, as diffusers and transformers choose."""

import json

import pytest
import torch
from safetensors.torch import save_file

from fluxsmith.errors import UserError
from fluxsmith.storage.tensor_files import read_tensors
from fluxsmith.storage.weight_files import weight_files

NAME = "diffusion_pytorch_model"


def put(path, value=1.0, name="w"):
    """A file that holds one tensor of this value."""
    save = save_file if path.suffix == ".safetensors" else torch.save
    save({name: torch.full((2,), value)}, path)
    return path


def shards(folder, stem, value, after="", index=None):
    """Two shards with the tensors a and b, and their index if it has a name."""
    names = [f"{stem}-0000{i}-of-00002{after}.safetensors" for i in (1, 2)]
    for name, tensor in zip(names, "ab", strict=True):
        put(folder / name, value, tensor)
    if index:
        where = {"weight_map": dict(zip("ab", names, strict=True))}
        (folder / index).write_text(json.dumps(where))


def value(path):
    return next(iter(read_tensors(path).values()))[0].item()


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([f"{NAME}.safetensors", f"{NAME}.fp16.safetensors"], 0),
        ([f"{NAME}.fp16.safetensors"], 0),
        ([f"{NAME}.safetensors", f"{NAME}.bin"], 0),
        ([f"{NAME}.bin", f"{NAME}.fp16.safetensors"], 0),
        ([f"{NAME}.bf16.safetensors", f"{NAME}.fp16.safetensors"], 0),
        (["model.safetensors", "model.fp16.safetensors", "pytorch_model.bin"], 0),
        ([f"{NAME}.safetensors", "adapter.safetensors", "optimizer.bin"], 0),
        (["flux.safetensors", "flux.text.safetensors"], 0),
        (["flux.safetensors", "scheduler.bin"], 0),
    ],
)
def test_of_several_files_one_is_chosen(tmp_path, names, chosen):
    for i, name in enumerate(names):
        put(tmp_path / name, float(i))
    assert value(tmp_path) == chosen


@pytest.mark.parametrize("after", ["", ".fp16"])
@pytest.mark.parametrize("index", [f"{NAME}.safetensors.index.json", None])
def test_shards_are_read_with_and_without_an_index(tmp_path, after, index):
    if index and after:
        index = f"{NAME}.safetensors.index.fp16.json"
    shards(tmp_path, NAME, 1.0, after, index)
    assert read_tensors(tmp_path).keys() == {"a", "b"}
    one = tmp_path / f"{NAME}-00001-of-00002{after}.safetensors"
    assert read_tensors(one).keys() == {"a", "b"}


def test_the_variant_before_the_number_is_one_too(tmp_path):
    shards(tmp_path, f"{NAME}.fp16", 1.0)
    put(tmp_path / f"{NAME}.safetensors", 7.0)
    assert value(tmp_path) == 7


def test_both_variants_in_shards_with_their_indices(tmp_path):
    shards(tmp_path, NAME, 1.0, "", f"{NAME}.safetensors.index.json")
    shards(tmp_path, NAME, 2.0, ".fp16", f"{NAME}.safetensors.index.fp16.json")
    assert value(tmp_path) == 1
    assert value(tmp_path / f"{NAME}.safetensors.index.fp16.json") == 2


def test_what_is_incomplete_comes_last(tmp_path):
    """As when only one variant was fetched, with every index."""
    shards(tmp_path, NAME, 1.0, "", f"{NAME}.safetensors.index.json")
    (tmp_path / f"{NAME}-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"00002-of-00002.*not there; fetch all its shards"):
        read_tensors(tmp_path)
    shards(tmp_path, NAME, 2.0, ".fp16", f"{NAME}.safetensors.index.fp16.json")
    assert value(tmp_path) == 2


def test_bin_shards_by_their_index(tmp_path):
    for i, name in enumerate("ab", start=1):
        put(tmp_path / f"pytorch_model-0000{i}-of-00002.bin", 1.0, name)
    where = {name: f"pytorch_model-0000{i}-of-00002.bin" for i, name in enumerate("ab", start=1)}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    assert read_tensors(tmp_path).keys() == {"a", "b"}


def test_links_of_a_hub_cache_are_followed(tmp_path):
    """Files are links to names without an ending."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "x"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    shards(blobs, NAME, 3.0, "", "index.json")
    for i, file in enumerate(sorted(blobs.iterdir())):
        blob = file.rename(blobs / f"{i:040x}")
        own = f"{NAME}.safetensors.index.json" if file.name == "index.json" else file.name
        (snapshot / own).symlink_to(blob)
    assert read_tensors(snapshot).keys() == {"a", "b"}
    blob = (snapshot / f"{NAME}-00001-of-00002.safetensors").resolve()
    assert read_tensors(blob).keys() == {"a"}


def test_names_of_ones_own_leave_a_choice(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        put(tmp_path / name)
    with pytest.raises(UserError, match=r"holds a\.safetensors, b\.safetensors; name the one"):
        weight_files(tmp_path)
