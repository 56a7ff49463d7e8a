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
from helpers import data_settings, open_data
from made_pictures import add, as_shards, items

from fluxsmith.data.records import FilePart
from fluxsmith.data.sources import open_source
from fluxsmith.errors import UserError

pytest.importorskip("webdataset")
MADE = items(12, size=4)
open_shards = partial(open_data, "webdataset")


def records(path, **options) -> list:
    shards = open_shards(str(path), "train", **options)
    return [record for i in range(len(shards)) for _, record in shards.read(i, 0)]


def everything(shards) -> dict[str, tuple[bytes, tuple[str, ...]]]:
    read = (record for i in range(len(shards)) for _, record in shards.read(i, 0))
    return {record.name: (in_bytes(record.picture), record.captions) for record in read}


def in_bytes(picture) -> bytes:
    return picture.read() if isinstance(picture, FilePart) else picture


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


def test_pictures_of_a_plain_archive_are_read_where_they_are_needed(tmp_path):
    """Not by every rank, and not kept in the shuffle buffer."""
    as_shards(tmp_path, MADE, 1)
    (there,) = tmp_path.glob("*.tar")
    assert all(isinstance(record.picture, FilePart) for record in records(there, test_share=0.0))
    (tmp_path / "gz").mkdir()
    (tmp_path / "gz" / "0.tar").write_bytes(gzip.compress(there.read_bytes()))
    packed = records(tmp_path / "gz", test_share=0.0)
    assert [record.picture for record in packed] == [
        record.picture.read() for record in records(there, test_share=0.0)
    ]
    assert len(packed) == len(MADE)


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


def test_shards_that_are_tested_on_are_not_trained_on(tmp_path):
    as_shards(tmp_path / "made", MADE, 3)
    (tmp_path / "all").mkdir()
    for number, name in enumerate(("train-000.tar", "val-000.tar", "mine.tar")):
        (tmp_path / "made" / f"{number:03d}.tar").rename(tmp_path / "all" / name)
    own = str(tmp_path / "all" / "mine.tar")
    parts = [sorted(caption for _, caption in MADE[i::3]) for i in range(3)]
    assert captions(tmp_path / "all", "train", test_path=own) == parts[0]
    assert captions(tmp_path / "all", "test", test_path=own) == parts[2]
    account = open_shards(str(tmp_path / "all"), "train", test_path=own).account
    assert [*account.passed["beside data.test_path"]] == [str(tmp_path / "all" / "val-000.tar")]
    assert "all for testing" in refused(own, test_path=own)


def test_with_and_without_a_share_held_out_it_is_other_data(tmp_path):
    pattern, own = as_shards(tmp_path / "all", MADE, 2), as_shards(tmp_path / "own", MADE, 1)
    found = [open_shards(pattern, "train", **key).digest() for key in ({}, {"test_path": own})]
    assert found[0] != found[1]


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
        (record,) = records(tmp_path, test_share=0.0, caption_key=key)
        assert "its json has words, id" in record.fault


def test_what_is_wrong_is_named(tmp_path):
    assert "data.path: missing" in refused(None)
    assert "no tar files" in refused(tmp_path)
    pattern = as_shards(tmp_path, MADE, 2)
    assert "there is no" in refused(pattern.replace("001", "007"))
    record = records(pattern, caption_key="words", test_share=0.0)[0]
    assert record.fault == "it has no words but png, txt: set data.caption_key to one of them"
    (tmp_path / "000.tar").write_bytes(b"no tar at all" * 100)
    assert "000.tar" in refused(pattern)
    with tarfile.open(tmp_path / "001.tar", "w") as tar:
        add(tar, "a.mp3", b"la la la")
        add(tar, "a.txt", b"a song")
    (record,) = records(tmp_path / "001.tar", test_share=0)
    assert "it has no image but mp3, txt" in record.fault


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


def shard(path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            add(tar, name, data)
    return path


def pairs(image: str, text: str, n: int = 3) -> list[tuple[str, bytes]]:
    members = ((image.format(i), MADE[i][0]) for i in range(n))
    return [
        m for i, one in enumerate(members) for m in (one, (text.format(i), MADE[i][1].encode()))
    ]


@pytest.mark.parametrize(
    ("members", "keys"),
    [
        (pairs("v1.5_{}.png", "v1.5_{}.txt"), {}),
        (pairs("{}.bmp", "{}.txt"), {}),
        (pairs("a/{}.PNG", "a/{}.caption"), {}),
        (pairs("{}.input.jpg", "{}.outputs.txt"),
         {"image_key": "input.jpg", "caption_key": "outputs.txt"}),
    ],
)  # fmt: skip
def test_an_ending_follows_the_last_dot_or_is_named(tmp_path, members, keys):
    path = shard(tmp_path / "0.tar", *members)
    assert captions(path, test_share=0.0, **keys) == sorted(text for _, text in MADE[:3])


def test_a_second_picture_of_a_name_is_no_sample_of_its_own(tmp_path):
    seg = [("0.seg.png", MADE[5][0]), ("1.png", MADE[1][0]), ("1.txt", b"one")]
    path = shard(tmp_path / "0.tar", *pairs("{}.png", "{}.txt", 1), *seg)
    found = {r.name[-1]: r.captions for r in records(path, test_share=0.0)}
    assert found == {"0": (MADE[0][1],), "1": ("one",)}
    counted = shard(
        tmp_path / "1.tar", *pairs("a.png", "a.txt", 1), *pairs("a.1.png", "a.1.txt", 1)
    )
    assert len(records(counted, test_share=0.0)) == 2


def test_samples_that_lack_a_part_are_named_and_the_others_read(tmp_path):
    members = pairs("{}.png", "{}.txt")
    members += [("7.txt", b"alone"), ("8.png", MADE[0][0]), ("8.json", b'{"url": "x"}')]
    found = {
        r.name[-1]: r.fault for r in records(shard(tmp_path / "0.tar", *members), test_share=0)
    }
    assert [found[key] for key in "012"] == ["", "", ""]
    assert found["7"].startswith("it has no image but txt")
    assert found["8"].startswith("its json has url; data.caption_key")
    apart = records(shard(tmp_path / "1.tar", ("9.png", MADE[0][0])), test_share=0)
    assert apart[0].fault.startswith("it has no caption but png; files of a sample follow each")


def test_numbers_of_classes_in_shards(tmp_path):
    members = [m for i in range(3) for m in ((f"{i}.png", MADE[i][0]), (f"{i}.cls", b"%d" % i))]
    path = shard(tmp_path / "0.tar", *members)
    named = records(path, test_share=0.0, class_names=["a", "b", "c"])
    assert [(r.captions, r.label) for r in named][2] == (("a photo of a c",), 2)
    assert records(path, test_share=0.0, templates=["digit {}"])[1].captions == ("digit 1",)
    assert records(path, test_share=0.0)[1].fault.startswith("its caption is the number 1")
    assert records(path, test_share=0.0, caption="")[1].captions == ("",)


def test_a_folder_of_shards_with_what_lies_beside_them(tmp_path):
    shard(tmp_path / "train" / "a" / "0.tar", *pairs("{}.png", "{}.txt"), ("._0.png", b"mac"))
    shard(tmp_path / "val" / "0.tar", ("9.png", MADE[9][0]), ("9.txt", b"nine"))
    for name in ("._0.tar", "0.tar.idx", "1.tar.part"):
        (tmp_path / "train" / name).write_bytes(b"no tar")
    shards = open_shards(str(tmp_path), "train")
    assert len(everything(shards)) == 3
    assert captions(tmp_path, "test") == ["nine"]
    passed = {reason: len(names) for reason, names in shards.account.passed.items()}
    assert passed == {
        "hidden or system file": 2,
        "ending .idx, which is no shard's": 1,
        "ending .part, which is no shard's": 1,
    }


@pytest.mark.parametrize("cut", [512, 1024, 1300, 2100])
def test_a_shard_that_ends_too_soon_is_an_error_with_its_name(tmp_path, cut):
    path = shard(tmp_path / "0.tar", *pairs("{}.png", "{}.txt"))
    assert len(records(path, test_share=0.0)) == 3
    path.write_bytes(path.read_bytes()[:cut])
    assert "0.tar" in refused(path, test_share=0.0)


def test_shards_called_after_splits_split(tmp_path):
    as_shards(tmp_path, MADE, 3)
    for i, name in enumerate(["set-train-0.tar", "set-val-0.tar", "other.tar"]):
        (tmp_path / f"00{i}.tar").rename(tmp_path / name)
    train, test = (everything(open_shards(str(tmp_path), split)) for split in ("train", "test"))
    assert {Path(name).parent.name for name in train} == {"set-train-0.tar"}
    assert {Path(name).parent.name for name in test} == {"set-val-0.tar"}
    (line,) = open_shards(str(tmp_path), "train").account.lines()
    assert "beside train and val" in line and "other.tar" in line


def test_shards_of_a_pattern_or_urls_split_by_their_names_too(tmp_path):
    """By what differs among them: those of one name were meant, whatever they are called."""
    as_shards(tmp_path / "test", MADE, 4)
    for i, name in enumerate(["train-0", "train-1", "val-0", "val-1"]):
        (tmp_path / "test" / f"00{i}.tar").rename(tmp_path / "test" / f"{name}.tar")
    for base in (str(tmp_path / "test"), "https://example.org/test/set"):
        both = f"{base}/{{train,val}}-{{0..1}}.tar"
        names = {s: [Path(u).stem for u in open_shards(both, s).urls] for s in ("train", "test")}
        assert names == {"train": ["train-0", "train-1"], "test": ["val-0", "val-1"]}
        for one in (f"{base}/val-{{0..1}}.tar", f"{base}/val-0.tar"):
            assert next(Path(url).stem for url in open_shards(one, "train").urls) == "val-0"
    signed = open_shards("https://example.org/{0..1}.tar?key=a-test-b", "train", test_share=0.0)
    assert len(signed) == 2


def test_shards_of_another_url_are_other_data():
    digests = {open_shards(f"https://{host}.org/0.tar", "train").digest() for host in ("a", "b")}
    assert len(digests) == 2


def test_shards_behind_links_are_read(tmp_path):
    as_shards(tmp_path / "there", MADE, 2)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "there")
    assert captions(tmp_path / "here", test_share=0.0) == ALL


def test_captions_that_are_no_utf8_and_files_without_an_ending_are_named(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        add(tar, "README", b"about")
        add(tar, "1.png", MADE[0][0])
        add(tar, "1.txt", "café".encode("latin-1"))
    shards = open_shards(str(tmp_path), "train", test_share=0.0)
    ((_, record),) = shards.read(0, 0)
    assert record.fault.startswith("its caption can't be read: 'utf-8'")
    assert list(shards.account.lines()) == [f"passed over 1 (no ending): {tmp_path}/0.tar/README"]


def test_a_folder_of_images_says_what_reads_it(tmp_path):
    (tmp_path / "owl.png").write_bytes(MADE[0][0])
    assert "data.source=folder reads" in refused(tmp_path)


def sample(tar: tarfile.TarFile, **files: str) -> None:
    """A picture with more files of its name."""
    add(tar, "a.png", MADE[0][0])
    for ending, text in files.items():
        add(tar, f"a.{ending}", text.encode())


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_nothing_is_tested_on_where_nothing_is_held_out(tmp_path, share):
    pattern = as_shards(tmp_path, MADE, 2)
    test = captions(pattern, "test", test_share=share)
    assert bool(test) == bool(share)
    assert not {*test} & {*captions(pattern, "train", test_share=share)}


def test_shards_that_are_all_for_testing_stop(tmp_path):
    as_shards(tmp_path / "val", MADE, 2)
    assert "all for testing, by the name val" in refused(tmp_path)


def test_a_caption_may_be_a_list_or_a_text_in_json(tmp_path):
    for number, text in enumerate(['["one", "two"]', '"three"']):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            sample(tar, json=text)
    assert captions(tmp_path, test_share=0.0) == ["one", "three", "two"]


def test_links_in_a_shard_are_passed_over(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        sample(tar, txt="a boat")
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        tar.addfile(link)
    shards = open_shards(str(tmp_path), "train")
    assert len(everything(shards)) == 1
    (line,) = shards.account.lines()
    assert line.startswith("passed over 1 (link, or no regular file): ")


def test_which_captions_are_read_is_said(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        sample(tar, txt="one\ntwo", json='{"caption": "three"}', cls="1")
    shards = open_shards(str(tmp_path), "train")
    everything(shards)
    first, second = shards.account.lines()
    assert first == "captions are read from txt, not from json, cls"
    assert second.startswith("texts have several lines, and each line is a caption of its own")
    several = data_settings("webdataset").model_copy(update={"path": [str(tmp_path)]})
    joined = open_source(several, "train")
    everything(joined)
    assert list(joined.account.lines()) == [f"{tmp_path}: {line}" for line in (first, second)]


def test_a_pattern_of_stars_says_what_there_is_instead(tmp_path):
    as_shards(tmp_path, MADE, 2)
    assert "name the folder, or use braces" in refused(f"{tmp_path}/*.tar")


EDITED = [*pairs("0.png", "0.txt", 1), ("0.edited.png", MADE[1][0]), ("0.edited.txt", b"edited")]


@pytest.mark.parametrize("members", [EDITED, EDITED[2:] + EDITED[:2], EDITED[::-1]])
def test_a_longer_name_with_a_picture_and_a_caption_is_a_sample(tmp_path, members):
    path = shard(tmp_path / "0.tar", *members, ("1.png", MADE[2][0]), ("1.txt", b"one"))
    found = everything(open_shards(str(path), "train", test_share=0.0))
    assert {name.removeprefix(f"{path}/"): sample for name, sample in found.items()} == {
        "0": (MADE[0][0], (MADE[0][1],)),
        "0.edited": (MADE[1][0], ("edited",)),
        "1": (MADE[2][0], ("one",)),
    }
    keys = {"image_key": "edited.png", "caption_key": "edited.txt", "reference_key": "png"}
    one = records(path, test_share=0.0, max_bad=1.0, **keys)[0]
    assert (one.captions, in_bytes(one.picture)) == (("edited",), MADE[1][0])
    assert in_bytes(one.reference) == MADE[0][0]
    meant = open_shards(str(path), "train", test_share=0.0, image_key="png")
    assert [captions for _, captions in everything(meant).values()] == [(MADE[0][1],), ("one",)]
    assert list(meant.account.passed["second image of its name"]) == [f"{path}/0.edited.png"]


def test_pictures_of_longer_names_that_are_not_read_are_named(tmp_path):
    seg = [("0.seg.png", MADE[5][0]), ("0.seg.depth.tiff", MADE[5][0]), ("0.seg.npy", b"x")]
    path = shard(tmp_path / "0.tar", *pairs("{}.png", "{}.txt", 1), *seg)
    shards = open_shards(str(path), "train", test_share=0.0)
    assert len(everything(shards)) == 1
    assert {why: [*names] for why, names in shards.account.passed.items()} == {
        "second image of its name": [f"{path}/0.seg.png", f"{path}/0.seg.depth.tiff"]
    }


def test_which_key_of_a_samples_json_is_read_is_said(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        sample(tar, json='{"caption": "a boat", "text": "read off"}')
    shards = open_shards(str(tmp_path), "train")
    assert [captions for _, captions in everything(shards).values()] == [("read off",)]
    (line,) = shards.account.lines()
    assert line == "captions are read from text in json, and caption not"


@pytest.mark.parametrize(("cls", "number"), [(b"2.0", 2), (b"-1\n", -1)])
def test_numbers_in_cls_are_never_captions(tmp_path, cls, number):
    path = shard(tmp_path / "0.tar", ("0.png", MADE[0][0]), ("0.cls", cls))
    for key in (None, "cls"):
        (record,) = records(path, test_share=0.0, caption_key=key)
        assert record.fault.startswith(f"its caption is the number {number}; name the classes")


def test_a_share_that_is_not_held_out_is_said(tmp_path):
    as_shards(tmp_path, MADE, 2)
    (tmp_path / "001.tar").rename(tmp_path / "val.tar")
    (line,) = open_shards(str(tmp_path), "train", test_share=0.5).account.lines()
    assert line == "data.test_share=0.5 does nothing: val has the test images"
