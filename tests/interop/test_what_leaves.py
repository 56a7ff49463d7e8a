"""What an export says and holds: no path of this machine, where weights came from, sizes and dtypes
as asked."""

import json
import os
import subprocess
import sys

import pytest
import torch
from flux_at_random import flux_at_random, tiny_params
from safetensors import safe_open
from test_against_flux_pipeline import made
from test_exporting import run_export, save_checkpoint
from test_importing import FLUX_WIDTHS
from tiny_autoencoder import save_autoencoder
from tiny_encoders import save_flux_text

from fluxsmith import Pipeline
from fluxsmith.errors import UserError
from fluxsmith.interop.importing import import_model
from fluxsmith.interop.provenance import after_training, spec_of
from fluxsmith.interop.read_weights import read_weights
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.tensor_files import read_metadata, read_tensors, write_tensors

SPEC = {"modelspec.title": "Foxes", "modelspec.hash_sha256": "0x12", "modelspec.license": "MIT"}
README = """---
license: other
license_name: flux-1-dev-non-commercial-license
license_link: LICENSE.md
base_model:
- black-forest-labs/FLUX.1-dev
tags: [foxes]
---
# Foxes
"""


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    return save_flux_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def checkpoint(pipeline, tmp_path):
    return save_checkpoint(tmp_path / "diffusion-7.pt", pipeline)


def headers(folder):
    """All text in the files below a folder: of safetensors the header."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            data = data[8 : 8 + int.from_bytes(data[:8], "little")]
        yield path, data


def test_no_path_of_this_machine_leaves_it(toy, tmp_path, encoders):
    _, folder = made(toy, tmp_path, encoders, True)
    run_export(tmp_path / "diffusion-7.pt", tmp_path / "bfl" / "m.safetensors")
    seen = [*headers(folder), *headers(tmp_path / "bfl")]
    assert len(seen) > 12
    for path, data in seen:
        for private in (str(tmp_path), str(encoders), os.path.expanduser("~/")):  # noqa: PTH111
            assert private.encode() not in data, path
    about = json.loads((folder / "fluxsmith" / "about.json").read_text())["config"]
    assert about["autoencoder"]["weights"] == "vae"
    assert about["text"]["t5"] == "."


def test_a_folder_that_was_moved_is_imported_with_its_own_parts(
    toy,
    tmp_path,
    encoders,
    monkeypatch,
):
    _, folder = made(toy, tmp_path, encoders, True)
    moved = folder.rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    import_model(tmp_path / "moved", tmp_path / "back.pt")
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = Pipeline.from_checkpoint(tmp_path / "back.pt", "cpu").config
    assert config.autoencoder.weights == str(moved / "vae")
    assert config.text.t5 == str(moved)


def test_relative_paths_hold_from_another_folder(tmp_path, monkeypatch):
    network = flux_at_random(tiny_params(**FLUX_WIDTHS))
    write_tensors(tmp_path / "flux.safetensors", network.state_dict(), {})
    save_autoencoder(tmp_path / "ae.safetensors")
    monkeypatch.chdir(tmp_path)
    import_model(
        "flux.safetensors", tmp_path / "o.pt", None, ["autoencoder.weights=ae.safetensors"]
    )
    config = checkpoints.load(tmp_path / "o.pt")["config"]
    assert config["autoencoder"]["weights"] == str(tmp_path / "ae.safetensors")


def test_licence_base_model_and_modelspec_go_on(toy, tmp_path, encoders):
    _, folder = made(toy, tmp_path, encoders, True)
    (folder / "fluxsmith" / "about.json").unlink()
    (folder / "README.md").write_text(README)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    write_tensors(file, read_tensors(file), SPEC)
    import_model(folder, tmp_path / "in.pt", None, ["text.t5_tokens=24"])
    run_export(tmp_path / "in.pt", tmp_path / "out", "diffusers")
    card = (tmp_path / "out" / "README.md").read_text()
    for line in (
        'license: "other"', 'license_name: "flux-1-dev-non-commercial-license"',
        'base_model: ["black-forest-labs/FLUX.1-dev"]', "Imported from `model`",
    ):  # fmt: skip
        assert line in card, line
    assert "0 steps" not in card
    metadata = read_metadata(tmp_path / "out" / "transformer")
    assert metadata.items() >= SPEC.items()
    for out, dtype in (("half.safetensors", "float16"), ("joined.safetensors", None)):
        run_export(tmp_path / "in.pt", tmp_path / out, dtype=dtype)
        metadata = read_metadata(tmp_path / out)
        assert metadata["modelspec.title"] == "Foxes"
        assert "modelspec.hash_sha256" not in metadata  # of other bytes


@pytest.mark.parametrize(
    ("said", "lines"),
    [
        ("MIT", ['license: "mit"']),
        ("Fox Licence 2", ['license: "other"', 'license_name: "Fox Licence 2"']),
    ],
)
def test_a_licence_that_the_file_alone_says_goes_on(toy, tmp_path, encoders, said, lines):
    """Into the card, and through training."""
    _, folder = made(toy, tmp_path, encoders, True)
    (folder / "fluxsmith" / "about.json").unlink()
    (folder / "README.md").unlink()
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    write_tensors(file, read_tensors(file), {"modelspec.license": said})
    import_model(folder, tmp_path / "in.pt", None, ["text.t5_tokens=24"])
    run_export(tmp_path / "in.pt", tmp_path / "out", "diffusers")
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(line in card for line in lines) and "No licence" not in card
    trained = after_training(checkpoints.load(tmp_path / "in.pt")["metadata"]["source"])
    assert spec_of(trained) == {"modelspec.license": lines[-1].split('"')[1]}


def test_an_imported_model_without_a_licence_says_so(tmp_path, checkpoint):
    run_export(checkpoint, tmp_path / "one", "diffusers")
    (tmp_path / "one" / "README.md").unlink()
    state = checkpoints.load(checkpoint)
    state |= {"step": 0, "metadata": state["metadata"] | {"source": {"name": "foxes.safetensors"}}}
    checkpoints.save(tmp_path / "in.pt", state)
    run_export(tmp_path / "in.pt", tmp_path / "out", "diffusers")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Imported from `foxes.safetensors`" in card
    assert "No licence came with `foxes.safetensors`" in card


@pytest.mark.parametrize("size", ["100KB", "0.1 MB"])
def test_shards_are_as_small_as_asked_and_read_again(checkpoint, tmp_path, size):
    run_export(checkpoint, tmp_path / "m", "diffusers", max_shard_size=size)
    shards = list((tmp_path / "m" / "transformer").glob("*-of-*.safetensors"))
    assert len(shards) > 2
    for shard in shards:
        tensors = read_tensors(next(iter([shard])))
        assert tensors
        with safe_open(shard, framework="pt") as file:
            total = sum(file.get_tensor(n).nbytes for n in file.keys())  # noqa: SIM118
            assert total <= 100_000 or len(list(file.keys())) == 1
    expected = read_weights(checkpoint).network
    read = read_weights(tmp_path / "m").network
    assert all(torch.equal(read[name], tensor) for name, tensor in expected.items())
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.FluxTransformer2DModel.from_pretrained(tmp_path / "m" / "transformer")
    assert torch.equal(theirs.x_embedder.weight, expected["img_in.weight"])


@pytest.mark.parametrize("form", ["bfl", "diffusers"])
def test_fp8_is_written_for_matrices_and_loads_elsewhere(checkpoint, tmp_path, form):
    out = tmp_path / ("m.safetensors" if form == "bfl" else "m")
    run_export(checkpoint, out, form, dtype="float8_e4m3fn")
    for tensor in read_weights(out).network.values():
        wanted = torch.float8_e4m3fn if tensor.ndim == 2 else torch.bfloat16
        assert tensor.dtype == wanted
    import_model(out, tmp_path / "back.pt")
    network = Pipeline.from_checkpoint(tmp_path / "back.pt", "cpu").network
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    if form == "diffusers":
        diffusers = pytest.importorskip("diffusers")
        theirs = diffusers.FluxTransformer2DModel.from_pretrained(
            out / "transformer", torch_dtype=torch.bfloat16
        )
        assert torch.equal(theirs.x_embedder.weight, network.img_in.weight)


def test_numbers_that_a_dtype_can_not_hold_are_named(tmp_path):
    with pytest.raises(UserError, match=r"x holds 500, and float8_e4m3fn ends at 448"):
        write_tensors(
            tmp_path / "x.safetensors", {"x": torch.full((2, 2), 500.0)}, {}, torch.float8_e4m3fn
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "int4"}, "--dtype int4: must be one of float32, bfloat16, float16, float8"),
        ({"max_shard_size": "5 parsecs"}, "--max-shard-size 5 parsecs: must be a size such as 5GB"),
        ({"form": "bfl", "max_shard_size": "5GB"}, "this export is one file"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(checkpoint, tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        run_export(checkpoint, tmp_path / "m.safetensors", **{"form": "diffusers", **options})
    assert not (tmp_path / "m.safetensors").exists()


def test_pushing_works_in_a_process_that_imported_nothing_else():
    pytest.importorskip("huggingface_hub")
    code = "from fluxsmith.interop.hub import check_upload; check_upload('me/model')"
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_x"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "--push-to-hub me/model: " in done.stderr
    assert "has no attribute" not in done.stderr
