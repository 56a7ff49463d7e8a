"""Models that ship: small, found by their names from anywhere, and the same model as before."""

import json
import os
import subprocess
import sys
import zipfile

import pytest
import torch
from helpers import randomise

from fluxsmith import Pipeline
from fluxsmith.cli import main
from fluxsmith.distillation.students import student_config
from fluxsmith.errors import UserError
from fluxsmith.interop import shipping
from fluxsmith.interop.exporting import export
from fluxsmith.interop.importing import contents
from fluxsmith.interop.open_pipeline import TextToImage
from fluxsmith.interop.read_weights import Weights, read_weights
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage import shipped


@pytest.fixture
def run(toy, tmp_path):
    """A run's folder with a checkpoint, and the pipeline that it holds."""
    pipeline = randomise(Pipeline.build(toy("name=toy"))).eval()
    own = pipeline.state_dict()
    network, text = (
        {n.removeprefix(p): t for n, t in own.items() if n.startswith(p)}
        for p in ("network.", "text.")
    )
    about = {"captions": ["3", "seven"], "autoencoder": pipeline.autoencoder.digest}
    weights = Weights("fluxsmith", "toy", network, text=text, step=7, metadata=about)
    folder = tmp_path / "run"
    folder.mkdir()
    checkpoints.save(folder / "diffusion-7.pt", contents(weights, pipeline.config))
    return folder


@pytest.fixture
def models(run, tmp_path, monkeypatch):
    """The folder of models that ship, with one in it."""
    folder = tmp_path / "models"
    monkeypatch.setattr(shipped, "FOLDERS", (tmp_path / "none", folder))
    export(run, folder / "toy", "fluxsmith")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return folder


def test_it_takes_half_the_room_and_draws_nearly_the_same(models, run):
    files = {path.name for path in (models / "toy").iterdir()}
    assert files == {"README.md", "samples.png", "diffusion-7.pt"}
    small, large = models / "toy/diffusion-7.pt", run / "diffusion-7.pt"
    weights = sum(t.numel() for t in checkpoints.load(large)["ema"].values())
    assert 2 * weights < small.stat().st_size < 2 * weights + 100_000
    pipeline = TextToImage.from_checkpoint(small)
    assert {p.dtype for p in pipeline.parameters()} == {torch.float32}
    drawn = pipeline.generate(["3"], seed=1)
    before = TextToImage.from_checkpoint(large).generate(["3"], seed=1)
    assert 0 < (drawn - before).abs().max() < 0.1


def test_without_samples_there_is_no_picture_and_the_card_has_none(run, tmp_path):
    export(run, tmp_path / "toy", "fluxsmith", samples=False)
    assert {path.name for path in (tmp_path / "toy").iterdir()} == {"README.md", "diffusion-7.pt"}
    assert "samples.png" not in (tmp_path / "toy/README.md").read_text()


def test_the_half_precision_that_draws_closer_is_taken(models, run):
    pipeline = TextToImage.from_checkpoint(run / "diffusion-7.pt")
    exact = {name: x.clone() for name, x in pipeline.trained_state().items()}
    errors = shipping.drawing_errors(pipeline, exact)
    metadata = checkpoints.load(models / "toy/diffusion-7.pt")["metadata"]
    assert metadata[checkpoints.STORED] == min(errors, key=errors.get)
    assert (
        f"Weights are stored in {metadata['stored_in']}" in (models / "toy/README.md").read_text()
    )


def test_it_is_found_by_its_name_from_anywhere(models, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        main(["sample", "toy", "--prompt", "seven", "--steps", "2", "--out", str(tmp_path / "out")])
    assert not exit_.value.code
    assert read_weights("toy").step == 7  # as train.init_from and import read it
    assert checkpoints.newest("toy") == models / "toy/diffusion-7.pt"
    from fluxsmith.web.gallery import Gallery

    assert Gallery([]).typed("toy") == "toy"


def test_a_folder_of_the_same_name_comes_first_and_a_wrong_name_says_which_there_are(models):
    with pytest.raises(UserError, match="these come by name: toy"):
        checkpoints.load(checkpoints.newest(models / "tie"))
    (models.parent / "elsewhere/toy").mkdir()
    with pytest.raises(UserError, match="no checkpoint in toy"):
        checkpoints.newest(type(models)("toy"))


def test_a_student_of_it_goes_to_a_run_s_folder_and_not_beside_it(models):
    config = student_config("toy", 4)
    assert not config.resolved_output_dir.startswith(str(models))
    assert config.resolved_output_dir.endswith("-4step")
    student = config.resolved_output_dir
    assert config.objective.cache == student.removesuffix("-4step") + "/trajectories"


def test_what_can_t_ship_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="bfloat16 or float16"):
        export(run, tmp_path / "x", "fluxsmith", dtype="float32")
    with pytest.raises(UserError, match="is there already"):
        export(run, run, "fluxsmith")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", [*shipped.shipped_models()])
def test_each_model_that_ships_is_small_draws_and_has_its_card(name):
    folder = shipped.shipped_folder(name)
    (file,) = folder.glob("diffusion-*.pt")
    assert file.stat().st_size <= 20e6
    pipeline = TextToImage.from_checkpoint(file)
    assert pipeline.config.name == name
    prompts = pipeline.captions[:2]
    few, more = (pipeline.generate(prompts, steps=n) for n in (1, 2))
    assert few.shape == (2, *pipeline.latent_shape) and few.isfinite().all()
    assert not torch.equal(few, more)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {name}\n") and "## Trained with\n\n`fluxsmith " in card
    assert f"| `{name}` |" in (folder.parent / "README.md").read_text(encoding="utf-8")


def test_the_models_that_ship_are_small_together_and_name_what_they_come_from():
    folders = shipped.shipped_models()
    assert sum(f.stat().st_size for p in folders.values() for f in p.glob("*")) <= 60e6
    assert {"digits-tiny", "mnist-small", "digits-colored"} <= {*folders}


@pytest.mark.slow
def test_a_model_that_ships_is_measured_and_exported_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (
        "evaluate digits-tiny --metrics validation_loss --json scores.json",
        "export digits-tiny model --format diffusers",
    ):
        with pytest.raises(SystemExit) as exit_:
            main(command.split())
        assert not exit_.value.code
    assert json.loads((tmp_path / "scores.json").read_text())["table"]
    assert (tmp_path / "model/transformer/config.json").is_file()


@pytest.mark.slow
def test_a_wheel_brings_the_models_and_the_page(tmp_path):
    pytest.importorskip("hatchling", reason="needs hatchling, which builds the wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*build, "-w", tmp_path, shipped.PACKAGE.parent], check=True)
    (wheel,) = tmp_path.glob("fluxsmith-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert (site / "fluxsmith/web/static/index.html").is_file()
    where = "import fluxsmith.storage.shipped as s; print(s.__file__, *s.shipped_models())"
    env = os.environ | {"PYTHONPATH": str(site)}
    told = subprocess.run(
        [sys.executable, "-c", where], env=env, cwd=tmp_path, capture_output=True, text=True
    ).stdout.split()
    assert told[0].startswith(str(site)) and told[1:] == [*shipped.shipped_models()]
    draw = [sys.executable, "-m", "fluxsmith", "sample", "digits-tiny", "--prompt", "seven"]
    subprocess.run([*draw, "--out", tmp_path / "out"], env=env, cwd=tmp_path, check=True)
    assert [*(tmp_path / "out").glob("sample-*.png")]
