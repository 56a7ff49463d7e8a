"""Hugging Face data sets, local ones, whole and streaming."""

import io
import shutil
from functools import partial

import pytest
from helpers import data_settings, open_data
from made_pictures import as_classes, as_parquet, items
from PIL import Image

from fluxsmith.data import load
from fluxsmith.data.records import Shards
from fluxsmith.errors import UserError

datasets = pytest.importorskip("datasets")
MADE = items(40, size=4)
open_rows = partial(open_data, "hf")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """The library's cache of prepared data, apart from the user's; no network and no bars."""
    cache = tmp_path_factory.getbasetemp() / "hf"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("FLUXSMITH_DATA", raising=False)
    datasets.disable_progress_bars()


def everything(source) -> list:
    if isinstance(source, Shards):
        return [record for i in range(len(source)) for _, record in source.read(i, 0)]
    return [source[i] for i in range(len(source))]


def refused(path, **options) -> str:
    with pytest.raises(UserError) as caught:
        open_rows(path if path is None else str(path), "train", **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def rows(**columns) -> "datasets.Dataset":
    """A data set with these columns, image beside them."""
    n = len(next(iter(columns.values())))
    images = [{"bytes": png, "path": None} for png, _ in MADE[:n]]
    made = datasets.Dataset.from_dict({"image": images, **columns})
    return made.cast_column("image", datasets.Image())


@pytest.mark.parametrize("streaming", [False, True])
def test_a_parquet_file_gives_its_pictures_untouched_and_its_captions(tmp_path, streaming):
    file = as_parquet(tmp_path / "train.parquet", MADE)
    records = everything(open_rows(str(file), "train", streaming=streaming, test_share=0.0))
    assert [(r.picture, r.captions) for r in records] == [(png, (text,)) for png, text in MADE]


def test_splits_are_told_by_name_and_held_out_where_there_is_one(tmp_path):
    as_parquet(tmp_path / "two" / "train-00000-of-00001.parquet", MADE[:30])
    as_parquet(tmp_path / "two" / "test-00000-of-00001.parquet", MADE[30:])
    lengths = [len(open_rows(str(tmp_path / "two"), split)) for split in ("train", "test")]
    assert lengths == [30, 10]
    file = str(as_parquet(tmp_path / "one.parquet", MADE))
    for streaming in (False, True):
        train, test = (
            {r.picture for r in everything(open_rows(file, s, streaming=streaming, test_share=0.3))}
            for s in ("train", "test")
        )
        assert not train & test
        assert len(train | test) == 40
        assert 3 <= len(test) <= 25
    source = open_rows(file, "train", test_share=0.3)
    assert list(source.captions()) == [record.captions for record in everything(source)]


@pytest.mark.parametrize("streaming", [False, True])
def test_classes_go_through_templates(tmp_path, streaming):
    made = rows(label=[0, 1, 1, -1]).cast_column(
        "label", datasets.ClassLabel(names=["owl", "sea_horse"])
    )
    made.to_parquet(tmp_path / "x.parquet")
    options = {"streaming": streaming, "test_share": 0.0}
    source = open_rows(str(tmp_path / "x.parquet"), "train", templates=["a {}", "{}!"], **options)
    assert list(source.classes) == ["owl", "sea_horse"]
    found = [(record.label, record.captions) for record in everything(source)]
    horse = (1, ("a sea horse", "sea horse!"))
    assert found == [(0, ("a owl", "owl!")), horse, horse, (None, ())]
    plain = open_rows(str(tmp_path / "x.parquet"), "train", **options)
    assert everything(plain)[0].captions == ("a photo of a owl",)


def test_lists_of_captions_and_several_columns(tmp_path):
    made = rows(caption=[["a", "b"], ["c"]], long=["d", "e"])
    made.save_to_disk(tmp_path / "saved")
    path = str(tmp_path / "saved")
    for streaming in (False, True):
        options = {"test_share": 0.0, "streaming": streaming}
        usual = everything(open_rows(path, "train", **options))
        assert [r.captions for r in usual] == [("a", "b"), ("c",)]
        both = everything(open_rows(path, "train", caption_key=["long", "caption"], **options))
        assert [r.captions for r in both] == [("d", "a", "b"), ("e", "c")]


def test_an_imagefolder_is_read_with_its_classes(tmp_path):
    as_classes(tmp_path / "pictures" / "train", MADE[:6], ["x", "y", "z"])
    source = open_rows(str(tmp_path / "pictures"), "train", test_share=0.0)
    assert list(source.classes) == ["x", "y", "z"]
    data = load(
        data_settings("hf", str(tmp_path / "pictures"), image_size=4, channels=3, test_share=0.0),
        "train",
    )
    assert data.class_labels.bincount().tolist() == [2, 2, 2]


def test_pictures_of_bytes_alone_are_read(tmp_path):
    stream = io.BytesIO()
    Image.new("L", (4, 4), 7).save(stream, format="PNG")
    made = datasets.Dataset.from_dict({"raw": [stream.getvalue()] * 3, "text": ["a", "b", "c"]})
    made.to_parquet(tmp_path / "x.parquet")
    settings = data_settings(
        "hf", str(tmp_path / "x.parquet"), image_size=4,
        image_key="raw", test_share=0.0,
    )  # fmt: skip
    assert load(settings, "train").images.unique().tolist() == [7]


def test_a_shared_copy_stands_for_the_hub(tmp_path, monkeypatch):
    as_parquet(tmp_path / "birds" / "train.parquet", MADE[:4])
    monkeypatch.setenv("FLUXSMITH_DATA", str(tmp_path))
    assert len(open_rows("someone/birds", "train", test_share=0.0)) == 4


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_missing_is_named(tmp_path, streaming):
    made = rows(title=["a", "b"], size=[1, 2])
    made.to_parquet(tmp_path / "x.parquet")
    path = tmp_path / "x.parquet"
    options = {"streaming": streaming}
    assert "has the columns title, size, and which holds the cap" in refused(path, **options)
    assert "data.caption_key=txt" in refused(path, caption_key="txt", **options)
    assert "data.image_key=img" in refused(path, image_key="img", **options)
    assert "data.train_split=training" in refused(path, train_split="training", **options)
    assert "data.test_split=dev" in refused(path, test_split="dev", **options)


def test_one_of_several_configurations_is_named(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        frame(tmp_path / name / "train.parquet", image=PICTURES, text=TEXTS)
    told = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in "ab")
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{told}---\n")
    for options in ({}, {"subset": "c"}):
        message = refused(tmp_path, **options)
        assert "['a', 'b']" in message and message.endswith("data.subset names one of them")
    assert len(open_rows(str(tmp_path), "train", subset="b", test_share=0.0)) == 6


def test_a_path_that_is_nothing_names_the_ways_out(tmp_path):
    assert "data.path: missing" in refused(None)
    message = refused("nobody/nothing-of-this-name")
    assert "HF_HUB_OFFLINE" in message
    assert "local copy" in message
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    assert "can't read" in refused(tmp_path / "x.parquet")
    frame(tmp_path / "y.parquet", image=[], caption=[])
    assert "whole and not empty" in refused(tmp_path / "y.parquet")


def frame(path, **columns):
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(columns).to_parquet(path)
    return path


PICTURES = [png for png, _ in MADE[:6]]
TEXTS = [text for _, text in MADE[:6]]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "columns",
    [
        {"image": [{"bytes": png, "path": "x.png"} for png in PICTURES], "text": TEXTS},
        {"jpg": PICTURES, "TEXT": TEXTS},
        {"seen": [[{"bytes": png}] for png in PICTURES], "n": [1] * 6, "text": TEXTS},
        {"where": [f"files/{i}.png" for i in range(6)], "caption": TEXTS},
    ],
)  # fmt: skip
def test_pictures_without_types_are_found_by_what_they_hold(tmp_path, columns, streaming):
    (tmp_path / "files").mkdir()
    for i, png in enumerate(PICTURES):
        (tmp_path / "files" / f"{i}.png").write_bytes(png)
    path = str(frame(tmp_path / "x.parquet", **columns))
    records = everything(open_rows(path, "train", test_share=0.0, streaming=streaming))
    held = [r.picture if isinstance(r.picture, bytes) else r.picture.read_bytes() for r in records]
    assert held == PICTURES
    assert [r.captions for r in records] == [(text,) for text in TEXTS]


def test_numbers_of_classes_and_lists_of_objects(tmp_path):
    raw = [[{"raw": text, "id": i}] for i, text in enumerate(TEXTS)]
    path = frame(
        tmp_path / "x.parquet", image=PICTURES, label=[i % 3 for i in range(6)], caption=raw
    )
    options = {"test_share": 0.0}
    named = open_rows(
        str(path), "train", caption_key="label", class_names=["a", "b", "c"], **options
    )
    assert list(named.classes) == ["a", "b", "c"]
    assert named[5].captions == ("a photo of a c",)
    digits = open_rows(str(path), "train", caption_key="label", templates=["digit {}"], **options)
    assert digits.captions()[:2] == [("digit 0",), ("digit 1",)]
    dotted = open_rows(str(path), "train", caption_key="caption.raw", **options)
    assert list(dotted.captions()) == [(text,) for text in TEXTS]
    plain = everything(open_rows(str(path), "train", **options))
    assert plain[0].fault == "its caption is an object with raw, id; data.caption_key=NAME.raw"
    unnamed = everything(open_rows(str(path), "train", caption_key="label", **options))
    assert unnamed[1].fault.startswith("its caption is the number 1; name the classes")
    assert everything(open_rows(str(path), "train", caption="a boat", **options))[3].captions == (
        "a boat",
    )


def test_a_column_that_holds_no_pictures_tells_what_it_holds(tmp_path):
    path = frame(tmp_path / "x.parquet", image=PICTURES, n=[1.5] * 6, text=TEXTS)
    records = everything(open_rows(str(path), "train", image_key="n", test_share=0.0))
    assert records[0].fault.startswith("its image is float, not a picture")


def test_of_several_columns_of_pictures_none_is_guessed(tmp_path):
    path = frame(tmp_path / "x.parquet", before=PICTURES, after=PICTURES[::-1], text=TEXTS)
    assert "has the columns before, after, text, and which holds the images" in refused(path)
    chosen = open_rows(str(path), "train", image_key="after", test_share=0.0)
    assert chosen[0].picture == PICTURES[-1]
    path = frame(tmp_path / "y.parquet", mask=PICTURES[::-1], image=PICTURES, text=TEXTS)
    assert open_rows(str(path), "train", test_share=0.0)[0].picture == PICTURES[0]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_a_table_of_paths_is_read(tmp_path, name):
    (tmp_path / "0.png").write_bytes(MADE[0][0])
    text = (
        "image,text\n0.png,an owl\n" if name == "rows.csv" else '{"image":"0.png","text":"an owl"}'
    )
    (tmp_path / name).write_text(text)
    (record,) = open_rows(str(tmp_path / name), "train")
    assert record.picture == tmp_path / "0.png" and record.captions == ("an owl",)
    (tmp_path / "rows.xlsx").write_bytes(b"x")
    assert "only files of .parquet" in refused(tmp_path / "rows.xlsx")


@pytest.mark.parametrize("name", ["x.PARQUET", "x.pq", "x"])
def test_a_file_is_known_by_how_it_begins(tmp_path, name):
    path = frame(tmp_path / name, image=PICTURES, text=TEXTS)
    assert len(open_rows(str(path), "train", test_share=0.0)) == 6


def test_columns_are_found_whatever_their_case_and_though_a_picture_is_broken(tmp_path):
    path = str(
        frame(tmp_path / "x.parquet", Image=[b"x", *PICTURES[1:]], Text=TEXTS, caption=TEXTS)
    )
    records = open_rows(path, "train", test_share=0.0)
    assert [record.picture for record in records][1:] == PICTURES[1:]
    assert list(records.account.lines()) == [
        "captions are read from the column Text, and caption not"
    ]


def split_by(tmp_path, words, **options) -> dict[str, list[str]]:
    """The captions of each split of a set whose rows have these words in a column."""
    path = str(frame(tmp_path / "x.parquet", image=PICTURES, text=TEXTS, Split=words))
    return {
        split: [r.captions[0] for r in everything(open_rows(path, split, **options))]
        for split in ("train", "test")
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_called_split_splits(tmp_path, streaming):
    words = ["Val", "train", None, "val", "training", ""]
    found = split_by(tmp_path, words, streaming=streaming, test_share=0.0)
    assert found["test"] == [TEXTS[0], TEXTS[3]]
    assert found["train"] == [TEXTS[i] for i in (1, 2, 4, 5)]


def test_rows_of_a_stream_that_say_train_are_not_held_out(tmp_path):
    words = ["val", "train", "train", "val", "training", "train"]
    found = split_by(tmp_path, words, streaming=True, test_share=0.99)
    assert found["train"] == [TEXTS[i] for i in (1, 2, 4, 5)]


@pytest.mark.parametrize("streaming", [False, True])
def test_no_row_of_a_testing_split_is_trained_on(tmp_path, streaming):
    words = ["val", "train", "test", "train", "train", "val"]
    found = split_by(tmp_path, words, streaming=streaming, test_share=0.0)
    assert found["train"] == [TEXTS[i] for i in (1, 3, 4)]
    if streaming:  # whose end is not known when it begins
        assert found["test"] == [TEXTS[i] for i in (0, 2, 5)]
        return
    assert found["test"] == [TEXTS[2]]
    passed = open_rows(str(tmp_path / "x.parquet"), "train").account.passed
    assert list(passed["of val, while test has the test images"]) == ["train/0", "train/5"]


def test_a_picture_in_rows_of_both_splits_is_tested_on(tmp_path):
    words = ["train", "test", "train", "train", "train", "train"]
    path = frame(
        tmp_path / "x.parquet", image=[*PICTURES[:5], PICTURES[1]], text=TEXTS, split=words
    )
    found = [
        [r.captions[0] for r in everything(open_rows(str(path), split))]
        for split in ("train", "test")
    ]
    assert found == [[TEXTS[i] for i in (0, 2, 3, 4)], [TEXTS[1], TEXTS[5]]]


def test_a_word_that_is_no_split_stops(tmp_path):
    words = ["train", "train", "fold-1", "train", "train", "test"]
    path = frame(tmp_path / "x.parquet", image=PICTURES, text=TEXTS, split=words)
    assert refused(path).startswith("train/2: its split is fold-1, which is none of train")
    stream = open_rows(str(path), "train", streaming=True)
    with pytest.raises(UserError, match="its split is fold-1"):
        everything(stream)
    path = frame(tmp_path / "y.parquet", image=PICTURES, text=TEXTS, split=["dev"] * 6)
    assert "its rows are all for testing, by dev in their column split" in refused(path)


COCO = [i // 5 for i in range(100)]  # five captions a picture
LARGE = [png for png, _ in items(20, size=120)]  # tens of kilobytes each


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "cell",
    [
        lambda i: LARGE[i],
        lambda i: {"bytes": LARGE[i], "path": f"{i}.png"},
        lambda i: {"bytes": LARGE[i], "path": "image.png"},
        lambda i: {"bytes": LARGE[i], "path": None},
        lambda i: [LARGE[i]],
        lambda i: f"files/{i}.png",
    ],
)
def test_rows_of_one_picture_are_of_one_split(tmp_path, cell, streaming):
    (tmp_path / "files").mkdir()
    for i, png in enumerate(LARGE):
        (tmp_path / "files" / f"{i}.png").write_bytes(png)
    told = {"image": [*map(cell, COCO)], "text": [f"{i}" for i in range(100)]}
    path = str(frame(tmp_path / "x.parquet", **told))
    numbers = [
        [
            int(r.captions[0])
            for r in everything(open_rows(path, s, streaming=streaming, test_share=0.4))
        ]
        for s in ("train", "test")
    ]
    train, test = ({COCO[i] for i in found} for found in numbers)
    assert not train & test
    assert train | test == set(range(20)) and 2 <= len(test) <= 15
    assert sorted(numbers[0] + numbers[1]) == list(range(100))


def test_rows_without_a_picture_are_counted_one_by_one(tmp_path):
    pictures = [None, b"", {"bytes": None, "path": None}, []]
    for i, nothing in enumerate(pictures):
        images = [
            nothing,
            *({"bytes": p} if i == 2 else [p] if i == 3 else p for p in PICTURES[1:]),
        ]
        path = frame(tmp_path / f"{i}.parquet", image=images, text=TEXTS)
        both = [everything(open_rows(str(path), s, test_share=0.3)) for s in ("train", "test")]
        assert sum(map(len, both)) == 6


def test_splits_and_files_that_are_not_read_are_named(tmp_path):
    for name in ("train", "validation", "test"):
        as_parquet(tmp_path / "set" / f"{name}-00000-of-00001.parquet", MADE[:6])
    (tmp_path / "set" / "notes.docx").write_text("")
    (tmp_path / "set" / "more.csv").write_text("image,text\n")
    for streaming in (False, True):
        source = open_rows(str(tmp_path / "set"), "train", streaming=streaming)
        assert {why: sorted(names) for why, names in source.account.passed.items()} == {
            "split beside train and test": ["validation"],
            "no file of parquet": ["more.csv", "notes.docx"],
        }


def test_all_files_of_an_imagefolder_are_its(tmp_path):
    as_classes(tmp_path / "pictures" / "train", MADE[:6], ["x", "y", "z"])
    assert not open_rows(str(tmp_path / "pictures"), "train").account.passed


@pytest.mark.parametrize("kind", ["file", "folder", "saved", "beside"])
def test_a_local_stream_of_other_pictures_or_captions_is_other_data(tmp_path, kind):
    def made(pictures, texts) -> str:
        """The digest of the same place with these in it."""
        if kind == "beside":
            for i, png in enumerate(pictures):
                (tmp_path / f"{i}.png").write_bytes(png)
            pictures = [f"{i}.png" for i in range(6)]
        path = tmp_path / "set"
        if kind == "saved":
            shutil.rmtree(path, ignore_errors=True)
            datasets.Dataset.from_dict({"image": pictures, "text": texts}).save_to_disk(path)
        else:
            path.mkdir(exist_ok=True)
            file = frame(path / "train.parquet", image=pictures, text=texts)
            file = file.rename(tmp_path / "x.parquet") if kind == "beside" else file
            path = path if kind == "folder" else file
        return open_rows(str(path), "train", streaming=True, test_share=0.0).digest()

    others = PICTURES[:5] + PICTURES[:1]
    found = [made(PICTURES, TEXTS), made(others, TEXTS), made(PICTURES, [*TEXTS[:5], "another"])]
    assert len(set(found)) == 3
    assert made(PICTURES, TEXTS) == found[0]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["0", "1", "0", "1", "0", "1"], "its caption is the number 0; name the classes"),
        ([0.0, 1.0, None, 1.0, 0.0, 1.0], "its caption is the number 0; name the classes"),
    ],
)
def test_numbers_of_classes_are_known_as_digits_and_with_gaps(tmp_path, labels, said):
    path = str(frame(tmp_path / "x.parquet", image=PICTURES, label=labels))
    first = open_rows(path, "train", test_share=0.0)[0]
    assert first.fault.startswith(said)
    named = open_rows(path, "train", test_share=0.0, class_names=["cat", "dog"])
    assert named[1].captions == ("a photo of a dog",)


def test_a_picture_has_one_class(tmp_path):
    path = str(frame(tmp_path / "x.parquet", image=PICTURES, labels=[[0, 1]] * 6))
    record = open_rows(path, "train", test_share=0.0, class_names=["cat", "dog"])[0]
    assert record.fault == "it has the labels 0 and 1; a picture has one"


def test_a_key_that_leads_nowhere_is_named(tmp_path):
    path = str(frame(tmp_path / "x.parquet", image=PICTURES, captions=[{"raw": t} for t in TEXTS]))
    record = open_rows(path, "train", test_share=0.0, caption_key="captions.rw")[0]
    assert record.fault == "it has no captions.rw"


def beside(folder, names=range(6)) -> None:
    """Pictures with these numbers as their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in names:
        (folder / f"{i}.png").write_bytes(PICTURES[i])


@pytest.mark.parametrize("inside", ["rows.csv", "."])
@pytest.mark.parametrize(
    "lines",
    [
        ["0.png,a cat, sleeping", "1.png,a dog, running"],
        ["0.png,a cat, black, sleeping", "1.png,a dog, brown, running"],
        ["0.png,a cat", "1.png,a dog, running"],
    ],
)
def test_texts_with_commas_and_without_quotes_stop(tmp_path, lines, inside):
    (tmp_path / "rows.csv").write_text("\n".join(["image,text", *lines]) + "\n")
    assert refused(tmp_path / inside).endswith("put texts that hold a comma in quotes")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "names",
    [
        ("TRAIN.parquet", "TEST.parquet"),
        ("data/Train-00000.parquet", "data/Validation-00000.parquet"),
        ("Train [1]/0.parquet", "VAL/0.parquet"),
    ],
)
def test_splits_are_known_in_any_case_of_letters(tmp_path, names, streaming):
    for name, rows in zip(names, (slice(4), slice(4, 6)), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        frame(tmp_path / name, image=PICTURES[rows], text=TEXTS[rows])
    found = [
        [r.captions[0] for r in everything(open_rows(str(tmp_path), s, streaming=streaming))]
        for s in ("train", "test")
    ]
    assert found == [TEXTS[:4], TEXTS[4:]]
    assert not open_rows(str(tmp_path), "train").account.passed


def test_folders_of_pictures_are_splits_in_any_case_or_classes(tmp_path):
    for split, n in (("Train", 2), ("Test", 1)):
        for name in ("cat", "dog"):
            beside(tmp_path / "a" / split / name, range(n))
    sides = [open_rows(str(tmp_path / "a"), s) for s in ("train", "test")]
    assert [len(side) for side in sides] == [4, 2]
    assert list(sides[0].classes) == ["cat", "dog"]
    for name in ("Test Tube", "Train Station"):
        beside(tmp_path / "b" / name, range(2))
    assert list(open_rows(str(tmp_path / "b"), "train").classes) == ["Test Tube", "Train Station"]
    (tmp_path / "a" / "metadata.csv").write_text("file_name,text\nTrain/cat/0.png,a cat\n")
    assert refused(tmp_path / "a").endswith("or set data.source=folder")


@pytest.mark.parametrize("streaming", [False, True])
def test_pictures_without_a_row_are_named(tmp_path, streaming):
    beside(tmp_path, range(3))
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a\n1.png,b\n")
    source = open_rows(str(tmp_path), "train", test_share=0.0, streaming=streaming)
    assert [r.captions for r in everything(source)] == [("a",), ("b",)]
    assert source.account.passed == {"no row": {"2.png": None}}


def test_a_path_of_this_machine_is_no_shared_copy_and_another_is_named(tmp_path, monkeypatch):
    as_parquet(tmp_path / "birds" / "train.parquet", MADE[:4])
    monkeypatch.setenv("FLUXSMITH_DATA", str(tmp_path))
    (_, line) = open_rows("someone/birds", "train").account.lines()
    assert line == f"data.path=someone/birds is read from {tmp_path / 'birds'}"
    for path in ("/nowhere/birds", "~/nowhere/birds", "./nowhere/birds", "../nowhere/birds"):
        assert "correct the path" in refused(path)


@pytest.mark.parametrize("streaming", [False, True])
def test_dotted_keys_lead_to_pictures(tmp_path, streaming):
    told = [{"data": png, "name": f"{i}.png"} for i, png in enumerate([*PICTURES, PICTURES[0]])]
    path = frame(tmp_path / "x.parquet", photo=told, text=[*TEXTS, "again"])
    assert "photo (an object with data, name; data.image_key=NAME.data)" in refused(path)
    options = {"image_key": "photo.data", "streaming": streaming}
    both = [
        everything(open_rows(str(path), s, test_share=0.4, **options)) for s in ("train", "test")
    ]
    found = {r.captions[0]: r.picture for side in both for r in side}
    assert found == dict(zip([*TEXTS, "again"], [*PICTURES, PICTURES[0]], strict=True))
    assert any({TEXTS[0], "again"} <= {r.captions[0] for r in side} for side in both)
    beside(tmp_path / "files", range(2))
    told = [{"where": name} for name in ("files\\0.png", f"file://{tmp_path}/files/1.png")]
    path = frame(tmp_path / "y.parquet", photo=told, text=TEXTS[:2])
    options["image_key"] = "photo.where"
    named = everything(open_rows(str(path), "train", test_share=0.0, **options))
    assert [r.picture.read_bytes() for r in named] == PICTURES[:2]


def test_settings_that_do_nothing_are_said_or_refused(tmp_path):
    for name in ("train", "test"):
        as_parquet(tmp_path / f"{name}.parquet", MADE[:4])
    assert "data.subset=x: " in refused(tmp_path / "train.parquet", subset="x")
    note = "data.test_share=0.5 does nothing: test has the test images"
    assert note in open_rows(str(tmp_path), "train", test_share=0.5).account.notes
    assert len(open_rows(str(tmp_path), "train").account.notes) == 1
