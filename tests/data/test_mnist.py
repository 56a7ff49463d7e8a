"""MNIST is read from IDX files wherever they lie, and whatever is wrong with one is told."""

import gzip
import hashlib
import os
from pathlib import Path

import pytest
import torch
from helpers import data_settings

from fluxsmith.data import load as load_fitted
from fluxsmith.data import mnist
from fluxsmith.errors import UserError

LABELS, IMAGES = "train-labels-idx1-ubyte", "train-images-idx3-ubyte"


def load(path: Path | str | None, split):
    return mnist.load(mnist.Settings(path and str(path)), split)


@pytest.fixture
def folder(tmp_path, cache, mnist_arrays, idx) -> Path:
    """The four files, not compressed."""
    return write(tmp_path / "files", {name: idx(array) for name, array in mnist_arrays.items()})


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def compress(folder: Path) -> None:
    for file in list(folder.iterdir()):
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()


def mistake(path: Path | str | None) -> str:
    with pytest.raises(UserError) as caught:
        load(path, "train")
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
def test_what_was_written_is_read(folder, mnist_arrays, split, prefix, compressed):
    if compressed:
        compress(folder)
    read = load(folder, split)
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


@pytest.mark.parametrize("length", [1, 12, -9, -1, None])
def test_a_gzip_file_cut_short_or_not_gzip_at_all_is_named(folder, length):
    compress(folder)
    file = folder / f"{LABELS}.gz"
    file.write_bytes(b"no gzip at all" if length is None else file.read_bytes()[:length])
    assert f"can't read {file}" in mistake(folder)


def test_images_and_labels_that_do_not_belong_together(folder, idx):
    write(folder, {LABELS: idx(torch.zeros(4, dtype=torch.uint8))})
    message = mistake(folder)
    assert f"{folder / IMAGES} holds 5 images but {folder / LABELS} 4 labels" in message
    write(folder, {LABELS: idx(torch.tensor([1, 2, 3, 4, 10], dtype=torch.uint8))})
    assert f"{folder / LABELS} has the label 10" in mistake(folder)


def test_what_can_not_be_read_or_is_not_there(tmp_path, cache):
    with pytest.raises(UserError, match=f"can't read {tmp_path}"):
        mnist.read_idx(tmp_path, dimensions=1)
    message = mistake(tmp_path / "nowhere")
    assert f"data.path={tmp_path / 'nowhere'}" in message
    assert IMAGES in message


def test_files_are_looked_for_under_the_path_or_the_variable_then_the_cache(
    tmp_path, cache, monkeypatch, mnist_arrays, idx
):
    places = [tmp_path / "path", tmp_path / "data" / "mnist", cache / "mnist"]
    for place, label in zip(places, (1, 2, 3), strict=True):
        labels = idx(torch.full((5,), label, dtype=torch.uint8))
        write(place, {IMAGES: idx(mnist_arrays[IMAGES]), LABELS: labels})
    monkeypatch.setenv("FLUXSMITH_DATA", str(tmp_path / "data"))
    assert set(load(places[0], "train").labels.tolist()) == {1}
    assert set(load(None, "train").labels.tolist()) == {2}
    assert "no train-images" in mistake(tmp_path / "paht")  # a slip is not passed over
    monkeypatch.delenv("FLUXSMITH_DATA")
    assert set(load(None, "train").labels.tolist()) == {3}


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


def test_the_real_set_has_the_published_counts_and_no_image_twice(real):
    splits = {split: load(real, split) for split in ("train", "test")}
    for split, digits in splits.items():
        assert digits.images.shape == (sum(HISTOGRAM[split]), 1, 28, 28)
        assert digits.labels.bincount().tolist() == HISTOGRAM[split]
        assert digits.labels[:3].tolist() == {"train": [5, 0, 4], "test": [7, 2, 1]}[split]
    seen = {image.tobytes() for image in splits["train"].images.numpy()}
    assert seen.isdisjoint(image.tobytes() for image in splits["test"].images.numpy())
    padded = load_fitted(data_settings("mnist", real, image_size=32), "test")
    assert padded.images.shape == (10_000, 1, 32, 32)
    assert torch.equal(padded.images[..., 2:30, 2:30], splits["test"].images)


def test_the_checksums_are_those_of_the_real_files(real):
    for name, md5 in [item for files in mnist.FILES.values() for item in files.items()]:
        plain, compressed = Path(real, name), Path(real, f"{name}.gz")
        data = plain.read_bytes() if plain.is_file() else gzip.decompress(compressed.read_bytes())
        assert hashlib.md5(data).hexdigest() == md5


@pytest.mark.parametrize(
    "named",
    ["{}", "MNIST/raw/{}", "raw/{}.gz", "{}/{}"],
)
@pytest.mark.parametrize("dot", [False, True])
def test_files_are_found_under_the_names_of_other_mirrors(
    tmp_path, cache, idx, mnist_arrays, named, dot
):
    for name, array in mnist_arrays.items():
        other = name.replace("-idx", ".idx") if dot else name
        file = tmp_path / named.format(other, other)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(idx(array)) if file.suffix == ".gz" else idx(array))
    assert len(load_fitted(data_settings("mnist", tmp_path), "train")) == 5
    assert len(load_fitted(data_settings("mnist", tmp_path), "test")) == 3


def test_sets_with_files_of_the_same_names_are_not_taken_for_it(tmp_path, cache, idx, mnist_arrays):
    files = {name: idx(array) for name, array in mnist_arrays.items()}
    inverted = {name: idx(255 - array) for name, array in mnist_arrays.items() if array.dim() == 3}
    for other in ("FashionMNIST", "KMNIST"):
        write(tmp_path / other / "raw", files | inverted)
    assert "no train-images-idx3-ubyte" in mistake(tmp_path)
    write(tmp_path / "MNIST" / "raw", files)
    expected = mnist_arrays["train-images-idx3-ubyte"]
    assert torch.equal(load(tmp_path, "train").images[:, 0], expected)
    assert torch.equal(load(tmp_path / "KMNIST", "train").images[:, 0], 255 - expected)  # as asked
