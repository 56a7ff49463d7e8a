"""Arms that make the same runs are refused, and so are runs that are there and are no longer those
that are declared; what was only moved is the same."""

import json
import shutil

import made_pictures
import pytest
import torch
from helpers import randomise

from fluxsmith.config.reading import build_config, with_overrides
from fluxsmith.distillation.students import student_config
from fluxsmith.distillation.teacher import Teacher
from fluxsmith.errors import UserError
from fluxsmith.evaluation.classifier import data_digest
from fluxsmith.evaluation.samples import Reference
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.studies.sameness import changes, refuse_twins
from fluxsmith.training.run import build_trainer

FOLDER = "data.source=folder", "data.path=a"


def test_arms_on_other_pictures_are_no_twins(toy):
    """Where a set lies does not matter to a resumed run, but here it is what differs."""
    refuse_twins({"a": toy(*FOLDER), "b": toy("data.source=folder", "data.path=b")})


@pytest.mark.parametrize(
    "key", ["train.log_every=3", "data.workers=3", "data.in_memory=true", "data.max_bad=0.5"]
)
def test_arms_that_differ_in_what_is_not_seen_are_twins(toy, key):
    with pytest.raises(UserError, match=r"arms\.b: the same runs as arms\.a"):
        refuse_twins({"a": toy(*FOLDER), "b": toy(*FOLDER, key)})


def test_data_may_be_moved_but_others_are_a_change(toy, tmp_path):
    pictures = made_pictures.items(8)
    for name, chosen in {"here": pictures, "moved": pictures, "other": pictures[:7]}.items():
        (tmp_path / name).mkdir()
        for i, (png, _) in enumerate(chosen):
            (tmp_path / name / f"{i}.png").write_bytes(png)
    settings = "data.source=folder", "data.caption=a thing", "data.test_share=0.25"
    here, moved, other = (
        toy(*settings, f"data.path={tmp_path / name}") for name in ("here", "moved", "other")
    )
    run = tmp_path / "run"
    run.mkdir()
    assert list(changes(run, here, other)) == []  # nothing was made of them
    of = Reference(here)
    told = {"provenance": {"data_digest": data_digest(of.train, of.test)}}
    (run / "evaluation.json").write_text(json.dumps({"drawings": {"g1": told}}), encoding="utf-8")
    assert list(changes(run, here, moved)) == []
    [(key, before, now)] = changes(run, here, other)
    assert (key, before, now) == ("data.path", here.data.path, other.data.path)


def test_a_teacher_may_be_moved_but_another_one_is_a_change(toy, tmp_path):
    folders = here, moved, other = [tmp_path / name for name in ("here", "moved", "other")]
    trainer = build_trainer(toy("train.steps=1", f"output_dir={here}"), torch.device("cpu"))
    for folder in folders[::2]:
        randomise(trainer.pipeline)
        trainer.ema.load(
            {k: w + len(folder.name) for k, w in trainer.pipeline.state_dict().items()}
        )
        folder.mkdir()
        checkpoints.save(folder / "diffusion-1.pt", trainer.state_dict())
    shutil.copytree(here, moved)
    student = student_config(here, 4)
    by_moved, by_other = (
        build_config(with_overrides(student.model_dump(), [f"objective.teacher={path}"]), "test")
        for path in (moved, other)
    )
    run = tmp_path / "run"
    run.mkdir()
    told = {"format": checkpoints.FORMAT, "metadata": {"teacher": Teacher(here).digest}}
    empty = {key: {} for key in checkpoints.KEYS} | {"step": 1, "images_seen": 1}
    checkpoints.save(run / "diffusion-1.pt", empty | told)
    assert list(changes(run, student, by_moved)) == []
    assert [key for key, _, _ in changes(run, student, by_other)] == ["objective.teacher"]
