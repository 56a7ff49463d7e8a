"""MNIST is read from IDX files wherever they lie, and whatever is wrong with one is told."""

import gzip
import hashlib
import os
from pathlib import Path

import pytest
import torch

from fluxsmith.data import DataSettings, mnist
from fluxsmith.data import load as load_fitted
from fluxsmith.errors import UserError

LABELS, IMAGES = "train-labels-idx1-ubyte", "train-images-idx3-ubyte"


@pytest.fixture
def folder(tmp_path, cache, mnist_arrays, idx) -> Path:
    """The four files, not compressed."""
    folder = tmp_path / "files"
    write(folder, {name: idx(array) for name, array in mnist_arrays.items()})
    return folder


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def compress(folder: Path) -> None:
    for file in list(folder.iterdir()):
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()


def mistake(path: Path | str | None) -> str:
    with pytest.raises(UserError) as caught:
        mnist.load(path and str(path), "train")
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
def test_what_was_written_is_read(folder, mnist_arrays, split, prefix, compressed):
    if compressed:
        compress(folder)
    read = mnist.load(str(folder), split)
    assert torch.equal(read.images[:, 0], mnist_arrays[f"{prefix}-images-idx3-ubyte"])
    assert read.labels.tolist() == mnist_arrays[f"{prefix}-labels-idx1-ubyte"].tolist()
    assert read.labels.dtype == torch.int64
    assert read.captions[4] == ("4", "four")


DAMAGE = {
    "truncated": lambda data: data[:-1],
    "too long": lambda data: data + b"\0",
    "only a header": lambda data: data[:8],
    "half a header": lambda data: data[:6],
    "of another type": lambda data: data[:2] + b"\x0d" + data[3:],
    "of other dimensions": lambda data: data[:3] + b"\x02" + data[4:],
    "little-endian": lambda data: data[:4] + data[4:8][::-1] + data[8:],
    "a web page": lambda data: b"<!doctype html><p>not found</p>",
    "empty": lambda data: b"",
    "of no items": lambda data: data[:4] + bytes(4) + data[8 : 4 + 4 * data[3]],
}


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", [LABELS, IMAGES])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named(folder, name, damage, compressed):
    file = folder / name
    file.write_bytes(damage(file.read_bytes()))
    if compressed:
        compress(folder)
    assert str(file) in mistake(folder)


def test_a_flipped_byte_anywhere_in_a_gzip_file_is_noticed_or_harmless(folder, mnist_arrays):
    compress(folder)
    file = folder / f"{LABELS}.gz"
    whole = file.read_bytes()
    noticed = 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        file.write_bytes(damaged)
        try:
            read = mnist.read_idx(file, dimensions=1)
        except UserError as error:
            assert str(file) in str(error)
            noticed += 1
        else:
            assert torch.equal(read, mnist_arrays[LABELS])
    assert noticed > len(whole) / 2


@pytest.mark.parametrize("length", [1, 5, 12, -9, -1])
def test_a_gzip_file_cut_short_is_named(folder, length):
    compress(folder)
    file = folder / f"{LABELS}.gz"
    file.write_bytes(file.read_bytes()[:length])
    assert str(file) in mistake(folder)


def test_a_file_that_is_not_gzip_in_spite_of_its_name(folder):
    compress(folder)
    (folder / f"{IMAGES}.gz").write_bytes(b"no gzip at all")
    assert f"{IMAGES}.gz is damaged" in mistake(folder)


def test_images_and_labels_that_differ_in_number(folder, idx):
    (folder / LABELS).write_bytes(idx(torch.zeros(4, dtype=torch.uint8)))
    message = mistake(folder)
    assert str(folder / IMAGES) in message
    assert str(folder / LABELS) in message
    assert "5 images" in message
    assert "4 labels" in message


def test_a_label_above_nine(folder, idx):
    (folder / LABELS).write_bytes(idx(torch.tensor([1, 2, 3, 4, 10], dtype=torch.uint8)))
    message = mistake(folder)
    assert f"{folder / LABELS} has the label 10" in message


def test_a_file_that_can_not_be_read(tmp_path):
    with pytest.raises(UserError, match="can't read") as caught:
        mnist.read_idx(tmp_path, dimensions=1)
    assert str(tmp_path) in str(caught.value)


def test_files_are_looked_for_under_the_path_then_the_variable_then_the_cache(
    tmp_path, cache, monkeypatch, mnist_arrays, idx
):
    images = idx(mnist_arrays[IMAGES])
    places = [tmp_path / "path", tmp_path / "data" / "mnist", cache / "mnist"]
    for place, label in zip(places, (1, 2, 3), strict=True):
        labels = idx(torch.full((5,), label, dtype=torch.uint8))
        write(place, {IMAGES: images, LABELS: labels})
    monkeypatch.setenv("FLUXSMITH_DATA", str(tmp_path / "data"))
    assert set(mnist.load(str(places[0]), "train").labels.tolist()) == {1}
    assert set(mnist.load(None, "train").labels.tolist()) == {2}
    monkeypatch.delenv("FLUXSMITH_DATA")
    assert set(mnist.load(None, "train").labels.tolist()) == {3}


def test_a_path_without_the_files_says_so(tmp_path, cache):
    message = mistake(tmp_path / "nowhere")
    assert f"data.path={tmp_path / 'nowhere'}" in message
    assert IMAGES in message


@pytest.fixture(scope="module")
def real() -> str:
    folder = Path(os.environ.get("FLUXSMITH_DATA", "")) / "mnist"
    if "FLUXSMITH_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("FLUXSMITH_DATA names no folder with mnist/ in it")
    return str(folder)


# How often each digit comes, as published with the set.
HISTOGRAM = {
    "train": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    "test": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
}


@pytest.fixture(scope="module")
def real_splits(real):
    return {split: mnist.load(real, split) for split in ("train", "test")}


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_real_set_has_the_published_counts(real_splits, split):
    digits = real_splits[split]
    assert digits.images.shape == (sum(HISTOGRAM[split]), 1, 28, 28)
    assert digits.labels.bincount().tolist() == HISTOGRAM[split]
    assert digits.labels[:3].tolist() == {"train": [5, 0, 4], "test": [7, 2, 1]}[split]


def test_no_real_image_is_in_both_splits(real_splits):
    seen = {image.tobytes() for image in real_splits["train"].images.numpy()}
    assert seen.isdisjoint(image.tobytes() for image in real_splits["test"].images.numpy())


def test_the_real_set_is_padded_to_32(real, real_splits):
    padded = load_fitted(DataSettings("mnist", real, image_size=32), "test")
    assert padded.images.shape == (10_000, 1, 32, 32)
    assert torch.equal(padded.images[..., 2:30, 2:30], real_splits["test"].images)


def test_the_checksums_are_those_of_the_real_files(real):
    for files in mnist.FILES.values():
        for name, md5 in files.items():
            plain, compressed = Path(real, name), Path(real, f"{name}.gz")
            if plain.is_file():
                data = plain.read_bytes()
            else:
                data = gzip.decompress(compressed.read_bytes())
            assert hashlib.md5(data).hexdigest() == md5
