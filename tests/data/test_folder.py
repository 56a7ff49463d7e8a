"""A folder is read the way its owner keeps it, and says in one line what is missing."""

import json
from functools import partial

import pytest
import torch
from helpers import data_settings, open_data
from made_pictures import as_classes, as_folder, items

from fluxsmith.config.data_section import DataConfig
from fluxsmith.data import build_loader, load, loading
from fluxsmith.data.loader import RecordLoader
from fluxsmith.data.pictures import decode
from fluxsmith.errors import UserError

MADE = items(20)
open_folder = partial(open_data, "folder")


def settings(path, **options) -> DataConfig:
    return data_settings("folder", path, image_size=12, channels=3, **options)


def both(path, **options):
    """Every record of the folder, whichever split it is in, by name."""
    splits = [open_folder(str(path), split, **options) for split in ("train", "test")]
    return {records[i].name: records[i] for records in splits for i in range(len(records))}


def refused(path, split="train", **options) -> str:
    with pytest.raises(UserError) as caught:
        open_folder(path if path is None else str(path), split, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("layout", ["jsonl", "csv", "txt"])
def test_each_layout_gives_every_image_its_caption(tmp_path, layout):
    records = both(as_folder(tmp_path, MADE, layout))
    assert len(records) == len(MADE)
    for i, (_, caption) in enumerate(MADE):
        assert records[f"{i:05d}.png"].captions == (caption,)


def test_class_folders_are_captioned_by_their_names(tmp_path):
    as_classes(tmp_path, MADE, ["sports_car", "owl"])
    records = open_folder(str(tmp_path), "train", templates=["a {}", "{}!"], test_share=0.0)
    assert list(records.classes) == ["owl", "sports_car"]
    captions = {record.label: record.captions for record in records}
    assert captions == {0: ("a owl", "owl!"), 1: ("a sports car", "sports car!")}
    assert records[0].name.startswith("owl/")


def test_in_memory_each_image_keeps_its_caption_and_its_class(tmp_path):
    free = load(settings(as_folder(tmp_path / "free", MADE), test_share=0.0), "train")
    assert free.classes is None
    assert free.images.dtype == torch.uint8
    for image, label in zip(free.images, free.labels.tolist(), strict=True):
        (caption,) = free.captions[label]
        png = next(png for png, text in MADE if text == caption)
        assert torch.equal(image, decode(png, 12, 3, "pad", 0.5))
    path = as_classes(tmp_path / "classes", MADE, ["b", "a"])
    data = load(settings(path, test_share=0.0), "train")
    assert data.classes.names == ("a", "b")
    assert list(data.captions) == [("a photo of a a",), ("a photo of a b",)]
    assert data.class_labels.tolist() == [0] * 10 + [1] * 10
    expected = torch.stack([decode(png, 12, 3, "pad", 0.5) for png, _ in MADE])
    assert torch.equal(data.images, torch.cat([expected[1::2], expected[::2]]))


def test_several_captions_of_an_image(tmp_path):
    as_folder(tmp_path, MADE[:2], layout="none")
    (tmp_path / "00000.txt").write_text("one\n\n  two  \n", encoding="utf-8")
    (tmp_path / "00001.txt").write_text("\ufeffdrei, vier", encoding="utf-8")
    assert both(tmp_path)["00000.png"].captions == ("one", "two")
    assert both(tmp_path, whole_text=True)["00000.png"].captions == ("one two",)
    rows = [{"file_name": f"0000{i}.png", "words": ["a", "b"]} for i in range(2)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metadata.jsonl").write_text(lines, encoding="utf-8")
    assert "data.captions=metadata or sidecar" in refused(tmp_path)
    asked = both(tmp_path, captions="metadata", caption_key="words")
    assert asked["00001.png"].captions == ("a", "b")


def test_the_splits_share_nothing_and_together_are_everything(tmp_path):
    made = items(200, size=2)
    as_folder(tmp_path, made)
    train, test = (open_folder(str(tmp_path), s, test_share=0.1) for s in ("train", "test"))
    names = [{records[i].name for i in range(len(records))} for records in (train, test)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 200
    assert 5 <= len(test) <= 40
    as_folder(tmp_path, [*made, *items(50, size=2)])  # more images: none changes its side
    later = open_folder(str(tmp_path), "test", test_share=0.1)
    assert names[1] <= {later[i].name for i in range(len(later))}
    as_folder(tmp_path / "few", made[:5])  # few images still give one to test
    few = [len(open_folder(str(tmp_path / "few"), split)) for split in ("train", "test")]
    assert few == [4, 1]


@pytest.mark.parametrize("inside", ["train", "."])
def test_a_test_folder_is_the_test_split(tmp_path, inside):
    as_folder(tmp_path / inside, MADE[:15], "txt")
    as_folder(tmp_path / "test", MADE[15:], "txt")
    train, test = (open_folder(str(tmp_path), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (15, 5)
    assert all(test[i].name.startswith("test/") for i in range(5))


def test_a_test_folder_that_lacks_a_class_keeps_the_numbers(tmp_path):
    as_classes(tmp_path / "train", MADE, ["a", "b", "c"])
    as_classes(tmp_path / "test", MADE[:4], ["c", "a"])
    test = open_folder(str(tmp_path), "test")
    assert list(test.classes) == ["a", "b", "c"]
    assert {record.label for record in test} == {0, 2}
    as_classes(tmp_path / "test", MADE[:4], ["c", "d"])
    assert "the class d is in test/ only" in refused(tmp_path, "test")


def test_hidden_and_other_files_are_left_alone(tmp_path):
    as_folder(tmp_path, MADE[:3], "txt")
    (tmp_path / ".thumbs").mkdir()
    (tmp_path / ".thumbs" / "00000.png").write_bytes(MADE[0][0])
    (tmp_path / "notes.md").write_text("not an image")
    assert len(both(tmp_path)) == 3


def test_what_is_missing_is_named(tmp_path):
    assert "data.path: missing" in refused(None)
    assert "there is no such folder" in refused(tmp_path / "nowhere")
    assert "no images in it" in refused(tmp_path)
    as_folder(tmp_path, MADE[:3], layout="none")
    message = refused(tmp_path)
    assert "no captions for its 3 images, such as 00000.png" in message
    assert "metadata.jsonl" in message


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ('{"file_name": "00000.png"}', "has no column of captions; set data.caption"),
        ('{"file_name": "00000.png", "words": "x"}', "has the columns words, and which holds the"),
        ('{"text": "x"}', "has the columns text, and which holds the images is not plain"),
        ('{"file_name": ', "line 1: must be a JSON object"),
        ("[1]", "must be a JSON object"),
        ("", "names no images"),
    ],
)
def test_a_wrong_line_of_metadata_is_named(tmp_path, row, names):
    as_folder(tmp_path, MADE[:1], layout="none")
    (tmp_path / "metadata.jsonl").write_text(row)
    message = refused(tmp_path)
    assert "metadata.jsonl" in message
    assert names in message


def test_settings_without_a_use_are_refused(tmp_path):
    as_folder(tmp_path, MADE[:2], "txt")
    assert "data.caption_key=words" in refused(tmp_path, caption_key="words")
    assert "data.image_key=words" in refused(tmp_path, image_key="words")
    assert "data.whole_text=True" in refused(tmp_path, captions="class", whole_text=True)
    assert "data.class_names=" in refused(tmp_path, captions="name", class_names=["a"])
    assert "there is no table" in refused(tmp_path, captions="metadata")


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_a_template_needs_its_placeholder(tmp_path, template):
    as_classes(tmp_path, MADE, ["a", "b"])
    message = refused(tmp_path, templates=["a {}", template])
    assert repr(template) in message
    assert "placeholder {}" in message


def test_bad_images_are_left_out_counted_and_named(tmp_path, caplog):
    as_folder(tmp_path, MADE, "txt")
    (tmp_path / "00003.png").write_bytes(MADE[3][0][:100])
    (tmp_path / "00004.txt").unlink()
    lenient = settings(tmp_path, max_bad=0.2, test_share=0.0)
    data = load(lenient, "train")
    assert len(data) == 18
    assert "picture number 3" not in data.distinct_captions()
    assert [record.args[0] for record in caplog.records] == ["00003.png", "00004.png"]
    with pytest.raises(UserError) as caught:
        load(settings(tmp_path, test_share=0.0), "train")
    message = str(caught.value)
    assert message.startswith("2 of 20 images can't be used, more than data.max_bad=0.01 allows")
    assert "00003.png" in message


def test_nothing_left_is_a_line(tmp_path):
    as_folder(tmp_path, MADE[:3], "txt")
    with pytest.raises(UserError, match="no images to train on"):
        build_loader(settings(tmp_path, test_share=1.0), 2, seed=0)
    for i in range(3):
        (tmp_path / f"0000{i}.png").write_bytes(b"")
    lenient = data_settings("folder", tmp_path, max_bad=1.0, test_share=0.0)
    with pytest.raises(UserError, match=r"no image can be used; 0000\d"):
        build_loader(lenient, 2, seed=0)


def test_of_too_many_images_a_spread_stands_for_them(tmp_path, monkeypatch, caplog):
    as_folder(tmp_path, MADE)
    monkeypatch.setattr(loading, "MEMORY_LIMIT", 5 * 3 * 12 * 12)
    data = load(settings(tmp_path, test_share=0.0), "train")
    assert data.distinct_captions() == [f"picture number {i}" for i in (0, 4, 8, 12, 16)]
    assert "20 images don't fit in memory: 5 stand for them" in caplog.text
    assert isinstance(build_loader(settings(tmp_path), 2, seed=0), RecordLoader)
