"""Damage to a checkpoint is found, named and passed over; what is planted in one never runs."""

import hashlib
import io
import pickle
import random
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from helpers import same
from reliability.comparing import COURSE, KEEP
from reliability.nonsense import Planted
from tiny_encoders import save_t5

import fluxsmith
from fluxsmith.cli import main
from fluxsmith.errors import UserError
from fluxsmith.pipeline import Pipeline
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.digest import problem_with
from fluxsmith.storage.tensor_files import DamagedFileError
from fluxsmith.training.run import train


@pytest.fixture
def folder(toy, run_folder, tmp_path_factory):
    """A finished run with checkpoints of the steps 2, 4 and 6; made once."""
    finished = tmp_path_factory.getbasetemp() / "finished"
    if not finished.exists():
        assert train(toy(*KEEP, f"output_dir={finished}")) == 0
    shutil.copytree(finished, run_folder)
    return run_folder


def flip(path, position, bit=0):
    with open(path, "r+b") as stream:
        stream.seek(position)
        byte = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([byte ^ 1 << bit]))


def test_a_flipped_bit_is_found_wherever_it_is(folder):
    """At 100 places drawn at random, at each of the last 100 bytes, and at the first."""
    path = folder / "diffusion-6.pt"
    size = path.stat().st_size
    draw = random.Random(0)
    places = {0, *range(size - 100, size), *(draw.randrange(size) for _ in range(100))}
    for place in sorted(places):
        bit = draw.randrange(8)
        flip(path, place, bit)
        with pytest.raises(DamagedFileError, match="diffusion-6"):
            checkpoints.load(path)
        flip(path, place, bit)
    assert problem_with(path) is None


def test_bytes_added_or_cut_off_are_found(folder):
    path = folder / "diffusion-6.pt"
    whole = path.read_bytes()
    for damaged in (whole + b"\0", b"\0" + whole, whole[:-1], whole[1:], whole[:-73], b""):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError):
            checkpoints.load(path)


def test_the_digest_is_that_of_the_archive_without_it(folder):
    """So anyone can check it: torch alone opens the file, and zip tools show the comment."""
    path = folder / "diffusion-6.pt"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        comment = archive.comment
    plain = path.read_bytes()[: -len(comment) - 2] + b"\0\0"
    assert comment == b"sha256:" + hashlib.sha256(plain).hexdigest().encode()
    contents = torch.load(path, weights_only=True, mmap=True)
    assert same(contents, torch.load(io.BytesIO(plain), weights_only=True))


def test_a_file_that_torch_alone_wrote_is_checked_by_its_records(folder, tmp_path):
    path = tmp_path / "plain.pt"
    torch.save(checkpoints.load(folder / "diffusion-6.pt"), path)
    checkpoints.load(path)
    flip(path, path.stat().st_size // 2)
    with pytest.raises(DamagedFileError, match=r"the record .* has changed"):
        checkpoints.load(path)


@pytest.mark.parametrize("damage", ["flipped", "empty", "foreign"])
def test_resuming_takes_the_newest_good_one_and_says_which_it_passed_over(
    toy, folder, capsys, damage
):
    whole = checkpoints.load(folder / "diffusion-6.pt")
    foreign = io.BytesIO()
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("notes.txt", "whole, but not of torch")
    for name in ("diffusion-4.pt", "diffusion-6.pt"):
        path = folder / name
        contents = path.read_bytes()
        middle = len(contents) // 2
        spoilt = {
            "flipped": contents[:middle] + bytes([contents[middle] ^ 1]) + contents[middle + 1 :],
            "empty": b"",
            "foreign": foreign.getvalue(),
        }
        path.unlink()  # `whole` is mapped from the old file
        path.write_bytes(spoilt[damage])
    capsys.readouterr()
    assert train(toy(*KEEP), resume="auto") == 0
    printed = capsys.readouterr().out
    for step in (4, 6):
        line = f"passed over, and renamed to diffusion-{step}.pt.damaged: "
        assert f"{line}{folder / f'diffusion-{step}.pt'}" in printed
        assert (folder / f"diffusion-{step}.pt.damaged").exists()
    assert f"from {folder / 'diffusion-2.pt'}" in printed
    again = checkpoints.load(folder / "diffusion-6.pt")
    assert [key for key in COURSE if not same(whole[key], again[key])] == []


def test_a_damaged_one_does_not_count_among_those_kept(toy, folder):
    """Else, with one to keep, the good one written after it would be deleted for it."""
    flip(folder / "diffusion-6.pt", 5000)
    (folder / "diffusion-4.pt").unlink()
    plan = ("train.checkpoint_every=1", "train.keep_checkpoints=1", "train.steps=4")
    assert train(toy(*plan), resume="auto") == 0
    assert [step for step, _ in checkpoints.find(folder)] == [4]


def test_without_a_good_one_nothing_is_begun_or_deleted(toy, folder):
    for _, path in checkpoints.find(folder):
        flip(path, 5000)
    before = sorted(p.name for p in folder.iterdir())
    with pytest.raises(UserError, match="no good checkpoint to resume") as caught:
        train(toy(*KEEP), resume="auto")
    assert "diffusion-2.pt" in str(caught.value)
    with pytest.raises(UserError, match="its SHA-256 is not the one it was written with"):
        train(toy(*KEEP), resume=str(folder / "diffusion-6.pt"))
    assert sorted(p.name for p in folder.iterdir()) == before


@pytest.mark.parametrize("form", ["zip", "signed zip", "old torch", "bare pickle"])
def test_planted_code_is_refused_and_not_run(toy, folder, tmp_path, form):
    """Where a run is resumed, forked, or drawn with."""
    marker, path = tmp_path / "executed", folder / "diffusion-6.pt"
    contents = {**checkpoints.load(path), "metadata": Planted(marker)}
    path.unlink()
    if form == "zip":
        torch.save(contents, path)
    elif form == "signed zip":
        checkpoints.save(path, contents)
    elif form == "old torch":
        torch.save(contents, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(Planted(marker)))
    archive = "zip" in form
    elsewhere = toy(*KEEP, f"output_dir={tmp_path / 'new'}")
    for way in (
        lambda: train(toy(*KEEP), resume=str(path)),
        lambda: train(elsewhere, fork=path),
        lambda: Pipeline.from_checkpoint(path),
    ):
        with pytest.raises(UserError, match="refused" if archive else "not a whole checkpoint"):
            way()
    if archive:
        with pytest.raises(UserError, match="refused"):
            train(toy(*KEEP), resume="auto")
    else:  # no checkpoint at all, so it is passed over
        assert train(toy(*KEEP), resume="auto") == 0
        path = folder / "diffusion-6.pt.damaged"
    assert not marker.exists()
    with open(path, "rb") as stream:
        pickle.load(stream) if form == "bare pickle" else torch.load(path, weights_only=False)
    assert marker.exists()  # a careless reader would have run it


@pytest.mark.parametrize("way", ["init_from", "import", "autoencoder", "text encoder"])
def test_planted_code_in_weights_of_others_is_refused_and_not_run(
    toy_file, tmp_path, capsys, monkeypatch, way
):
    """Pickles, as torch.save writes them, in every place where weights may come from."""
    pytest.importorskip("transformers")
    monkeypatch.setenv("FLUXSMITH_CACHE", str(tmp_path / "cache"))
    marker, planted = tmp_path / "executed", tmp_path / "planted.pt"
    if way == "text encoder":
        folder = save_t5(tmp_path / "t5")
        (folder / "model.safetensors").unlink()
        planted = folder / "pytorch_model.bin"
    torch.save({"shared.weight": torch.zeros(2), "x": Planted(marker)}, planted)
    command = {
        "init_from": ["train", toy_file, f"train.init_from={planted}"],
        "import": ["import", planted, tmp_path / "new.pt"],
        "autoencoder": ["train", toy_file, "autoencoder.kind=flux", "data.channels=3",
                        "data.image_size=32", f"autoencoder.weights={planted}"],
        "text encoder": ["train", toy_file, "text={encoder: transformers, pretrained: "
                         f"'{planted.parent}'}}"],
    }[way]  # fmt: skip
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in command])
    assert exit_.value.code == 2
    printed = capsys.readouterr().err
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, printed
    assert str(planted.parent) in lines[0]
    assert not marker.exists()
    torch.load(planted, weights_only=False)
    assert marker.exists()  # it would have run


def test_every_file_that_the_package_loads_is_loaded_as_plain_data():
    """The tests above try what is known to be read; this one sees to it that there is no other."""
    careless = (
        r"\b(pickle|marshal|dill)\.loads?\(|allow_pickle|(?<![.\w])(eval|exec)\("
        r"|yaml\.(unsafe_load|full_load|Loader|FullLoader|UnsafeLoader)"
    )
    for file in Path(fluxsmith.__file__).parent.rglob("*.py"):
        source = file.read_text(encoding="utf-8")
        assert not re.search(careless, source), file
        assert source.count("torch.load(") == source.count("weights_only=True"), file
