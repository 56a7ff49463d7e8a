"""Tar shards, by path and by URL."""

import json
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from made_pictures import add, as_shards, items

from fluxsmith.data.webdataset import load as open_shards
from fluxsmith.errors import UserError

pytest.importorskip("webdataset")
MADE = items(12, size=4)


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


def test_a_share_is_held_out_by_name(tmp_path):
    made = items(200, size=1)
    pattern = as_shards(tmp_path, made, 4)
    train, test = (captions(pattern, split, test_share=0.1) for split in ("train", "test"))
    assert sorted(train + test) == sorted(caption for _, caption in made)
    assert 5 <= len(test) <= 40


def test_shards_of_their_own_for_testing(tmp_path):
    train = as_shards(tmp_path / "a", MADE[:8], 2)
    test = as_shards(tmp_path / "b", MADE[8:], 1)
    assert captions(train, "train", test_path=test) == sorted(c for _, c in MADE[:8])
    assert captions(train, "test", test_path=test) == sorted(c for _, c in MADE[8:])


def test_endings_may_be_mixed_and_captions_several(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "a.jpg", MADE[0][0])
        add(tar, "a.txt", b"one\ntwo\n")
        add(tar, "b.webp", MADE[1][0])
        add(tar, "b.json", json.dumps({"caption": ["drei", "vier"], "id": 3}).encode())
        add(tar, "c.png", MADE[2][0])
    path = tmp_path / "x.tar"
    found = everything(open_shards(str(path), "train", test_share=0.0))
    assert found[f"{path}/a"][1] == ("one", "two")
    assert found[f"{path}/c"][1] == ()  # which counts as a bad image when it is decoded
    assert found[f"{path}/b"][1] == ("drei", "vier")


def test_the_key_of_the_caption(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "b.png", MADE[1][0])
        add(tar, "b.json", json.dumps({"words": ["drei", "vier"], "id": 3}).encode())
    assert captions(tmp_path, test_share=0.0, caption_key="words") == ["drei", "vier"]
    assert "has words, id" in refused(tmp_path, test_share=0.0)
    assert "has words, id" in refused(tmp_path, test_share=0.0, caption_key="text")


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
