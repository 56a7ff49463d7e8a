"""Tar files from strangers: compressed or not, they take no more memory than they should, and no
name of one is a command."""

import bz2
import gzip
import io
import lzma
import resource
import tarfile
from pathlib import Path

import pytest
from made_pictures import as_shards, items

from fluxsmith.data import tarfiles
from fluxsmith.data.webdataset import load as open_shards
from fluxsmith.errors import UserError

pytest.importorskip("webdataset")
PRESSES = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


def read(path: Path | str) -> list[object]:
    shards = open_shards(str(path), "train", test_share=0.0)
    return [record for i in range(len(shards)) for _, record in shards.read(i, 0)]


def refused(path: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert len(message) < 1000
    assert message.startswith(f"data.path: can't read the shard {path} (")
    return message


def header(size: int, kind: bytes = tarfile.REGTYPE, name: str = "a.png") -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf()


@pytest.mark.parametrize("kind", PRESSES)
def test_a_compressed_shard_holds_the_same(tmp_path, kind):
    as_shards(tmp_path, items(5, size=4), 1)
    plain = tmp_path / "000.tar"
    pressed = tmp_path / f"000.tar.{kind}"
    pressed.write_bytes(PRESSES[kind](plain.read_bytes()))
    found, expected = read(pressed), read(plain)
    assert [(r.picture, r.captions) for r in found] == [(r.picture, r.captions) for r in expected]
    assert len(found) == 5


@pytest.mark.parametrize("kind", [*PRESSES, "plain"])
@pytest.mark.parametrize("of", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_what_claims_to_be_huge_is_refused_before_it_is_read(tmp_path, kind, of):
    """A gigabyte behind a header of 512 bytes, as a file's contents, as its name, as its notes."""
    press = PRESSES.get(kind, lambda data: data)
    bomb = press(header(10**9, of)) + (100 * press(bytes(10**7)) if kind in PRESSES else b"")
    path = tmp_path / "bomb.tar"
    path.write_bytes(bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "claims 1,000,000,000 bytes" in refused(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def test_a_sparse_file_is_as_large_as_it_reads(tmp_path):
    """Its gigabytes of zeros stand nowhere in the tar file."""
    notes = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.png",
             "GNU.sparse.realsize": "99999999999"}  # fmt: skip
    path = tmp_path / "sparse.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("x/a.png")
        member.pax_headers, member.size = notes, 512
        tar.addfile(member, io.BytesIO(b"1\n99999999999\n0\n".ljust(512, b"\0")))
    assert "claims 99,999,999,999 bytes" in refused(path)


def test_many_that_are_small_add_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tarfiles, "MOST_BYTES", 2**24)
    size = 2**20
    path = tmp_path / "many.tar.gz"
    zeros = gzip.compress(bytes(size))
    parts = [gzip.compress(header(size, name=f"{i}.png")) + zeros for i in range(100)]
    path.write_bytes(b"".join(parts))
    assert "unpacks to more than 100 times its size" in refused(path)


def test_names_without_end_are_refused(tmp_path):
    path = tmp_path / "name.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("/" * 5000 + "a.png"))
    assert "a name in it has 5,0" in refused(path)


@pytest.mark.parametrize(
    "url",
    [
        "pipe:touch executed;://",
        "pipe://x; touch executed",
        "http://x/'$(touch executed)'",
        "https://x/`touch executed`.tar",
        "ftp://x/a.tar",
    ],
)
def test_no_url_is_a_command(tmp_path, monkeypatch, url):
    """The library runs what follows `pipe:`, and earlier ones put URLs into a shell's quotes."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data\.path=.*commands are not run for data"):
        read(url)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_that_name_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    as_shards(tmp_path, items(2, size=4), 1)
    Path("000.tar").rename("pipe:touch executed.tar")
    assert len(read(".")) == 2
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "pattern", ["x{0..99999999999}.tar", "{a,b}" * 20, "{1..", "${NOWHERE}.tar"]
)
def test_patterns_that_explode_or_mean_nothing_are_one_line(pattern):
    with pytest.raises(UserError, match=r"data\.path=") as caught:
        read(pattern)
    assert len(str(caught.value)) < 1000
