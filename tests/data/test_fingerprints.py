"""Data that changed is other data, though names, sizes and times are what they were."""

import os
from pathlib import Path

import pytest
from helpers import open_data
from made_pictures import as_folder, as_parquet, as_shards, items

from fluxsmith.data.fingerprints import SAMPLE, STRIDE, fingerprint, fingerprints

MADE = items(6)


def changed_at(path: Path, place: int) -> None:
    """One byte, with the time of change put back."""
    known, data = path.stat(), bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))


@pytest.mark.parametrize(
    ("size", "place"),
    [(1, 0), (STRIDE, STRIDE // 2), (5 * STRIDE + 9, 4 * STRIDE), (5 * STRIDE + 9, -1)],
)
def test_one_byte_tells_files_apart(tmp_path, size, place):
    file = tmp_path / "a"
    file.write_bytes(os.urandom(size))
    before = fingerprint(file)
    assert fingerprint(file.rename(tmp_path / "b")) == before
    changed_at(tmp_path / "b", place)
    assert fingerprint(tmp_path / "b") != before


def test_of_a_large_file_a_part_is_read(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(bytes(3 * STRIDE))
    before = fingerprint(file)
    changed_at(file, SAMPLE)  # between two samples
    assert fingerprint(file) == before
    assert fingerprint(file) != fingerprint(file.read_bytes())


def test_threads_give_the_same_in_order(tmp_path):
    files = [tmp_path / str(i) for i in range(600)]
    for file in files[:-1]:
        file.write_text(file.name)
    found = list(fingerprints(files, 3))
    assert found == [*map(fingerprint, files)]
    assert len(set(found)) == 600
    assert found[-1] == ""


@pytest.mark.parametrize("kind", ["folder", "webdataset", "hf"])
def test_a_picture_changed_in_place_makes_other_data(tmp_path, kind):
    if kind == "folder":
        path = as_folder(tmp_path / "a", MADE)
        file = path / "00003.png"
    elif kind == "webdataset":
        pytest.importorskip("webdataset")
        path = as_shards(tmp_path / "a", MADE, 1)
        file = tmp_path / "a" / "000.tar"
    else:
        pytest.importorskip("datasets")
        path = file = as_parquet(tmp_path / "a.parquet", MADE)
    before = open_data(kind, path, "train", test_share=0.0).digest()
    assert open_data(kind, path, "train", test_share=0.0).digest() == before
    if kind == "hf":
        as_parquet(file, [*MADE[:3], (MADE[4][0], MADE[3][1]), *MADE[4:]])
    else:
        changed_at(file, 700 if kind == "webdataset" else 300)
    assert open_data(kind, path, "train", test_share=0.0).digest() != before
