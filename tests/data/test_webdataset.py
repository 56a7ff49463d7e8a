"""Tar shards, by path and by URL; compressed or not, and none of their names is a command."""

import bz2
import gzip
import json
import lzma
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import open_data
from made_pictures import add, as_shards, items

from fluxsmith.errors import UserError

pytest.importorskip("webdataset")
MADE = items(12, size=4)
open_shards = partial(open_data, "webdataset")


def everything(shards) -> dict[str, tuple[bytes, tuple[str, ...]]]:
    read = (record for i in range(len(shards)) for _, record in shards.read(i, 0))
    return {record.name: (record.picture, record.captions) for record in read}


def captions(path, split="train", **options) -> list[str]:
    records = everything(open_shards(str(path), split, **options)).values()
    return sorted(text for _, ways in records for text in ways)


def refused(path, **options) -> str:
    with pytest.raises(UserError) as caught:
        everything(open_shards(path if path is None else str(path), "train", **options))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


ALL = sorted(caption for _, caption in MADE)


@pytest.mark.parametrize("caption", ["txt", "json"])
def test_braces_a_folder_and_a_single_file_name_the_same(tmp_path, caption):
    pattern = as_shards(tmp_path / "many", MADE, 3, caption)
    as_shards(tmp_path / "one", MADE, 1, caption)
    for path in (pattern, tmp_path / "many", tmp_path / "one" / "000.tar"):
        assert captions(path, test_share=0.0) == ALL
    records = everything(open_shards(pattern, "train", test_share=0.0))
    assert {picture for picture, _ in records.values()} == {png for png, _ in MADE}


def test_urls_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    as_shards(tmp_path, MADE, 3)
    handler = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_address[1]}"
        assert captions(f"{base}/{{000..002}}.tar", test_share=0.0) == ALL
        assert "can't read the shard" in refused(f"{base}/missing.tar")
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_reading_may_begin_anywhere_in_a_shard(tmp_path):
    shards = open_shards(as_shards(tmp_path, MADE, 1), "train", test_share=0.0)
    whole = list(shards.read(0, 0))
    assert [place for place, _ in whole] == list(range(12))
    assert list(shards.read(0, 5)) == whole[5:]


def test_test_images_are_a_share_told_by_name_or_shards_of_their_own(tmp_path):
    pattern = as_shards(tmp_path / "all", items(200, size=1), 4)
    train, test = (captions(pattern, split, test_share=0.1) for split in ("train", "test"))
    assert sorted(train + test) == sorted(caption for _, caption in items(200, size=1))
    assert 5 <= len(test) <= 40
    own = as_shards(tmp_path / "own", MADE, 1)
    assert captions(pattern, "train", test_path=own) == sorted(train + test)
    assert captions(pattern, "test", test_path=own) == ALL


def test_endings_may_be_mixed_and_captions_several(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "a.jpg", MADE[0][0])
        add(tar, "a.txt", b"one\ntwo\n")
        add(tar, "b.webp", MADE[1][0])
        add(tar, "b.json", json.dumps({"caption": ["drei", "vier"], "id": 3}).encode())
        add(tar, "c.png", MADE[2][0])
    found = everything(open_shards(str(path), "train", test_share=0.0))
    assert {name: captions for name, (_, captions) in found.items()} == {
        f"{path}/a": ("one", "two"),
        f"{path}/b": ("drei", "vier"),
        f"{path}/c": (),  # which counts as a bad image when it is decoded
    }
    with tarfile.open(path, "w") as tar:
        add(tar, "b.png", MADE[1][0])
        add(tar, "b.json", json.dumps({"words": ["drei", "vier"], "id": 3}).encode())
    assert captions(tmp_path, test_share=0.0, caption_key="words") == ["drei", "vier"]
    for key in (None, "text"):
        assert "has words, id" in refused(tmp_path, test_share=0.0, caption_key=key)


def test_what_is_wrong_is_named(tmp_path):
    assert "data.path: missing" in refused(None)
    assert "no tar files" in refused(tmp_path)
    pattern = as_shards(tmp_path, MADE, 2)
    assert "there is no" in refused(pattern.replace("001", "007"))
    assert "is for json files" in refused(pattern, caption_key="words", test_share=0.0)
    (tmp_path / "000.tar").write_bytes(b"no tar at all" * 100)
    assert "000.tar" in refused(pattern)
    with tarfile.open(tmp_path / "001.tar", "w") as tar:
        add(tar, "a.mp3", b"la la la")
        add(tar, "a.txt", b"a song")
    assert "has no jpg, jpeg, png, webp but mp3, txt" in refused(tmp_path / "001.tar", test_share=0)


@pytest.mark.parametrize("press", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_shard_holds_the_same(tmp_path, press):
    as_shards(tmp_path, MADE, 1)
    plain = tmp_path / "000.tar"
    (tmp_path / "pressed").write_bytes(press(plain.read_bytes()))
    assert captions(tmp_path / "pressed", test_share=0.0) == captions(plain, test_share=0.0) == ALL


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
    assert "commands are not run for data" in refused(url)
    as_shards(tmp_path, MADE, 1)
    Path("000.tar").rename("pipe:touch executed.tar")
    assert captions(".", test_share=0.0) == ALL  # a file of that name is a file
    assert not Path("executed").exists()


@pytest.mark.parametrize("pattern", ["{1..", "${NOWHERE}.tar"])
def test_patterns_that_mean_nothing_are_named(pattern):
    assert "data.path=" in refused(pattern)
