"""Hugging Face data sets, local ones, whole and streaming."""

import io
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


def test_a_path_that_is_nothing_names_the_ways_out(tmp_path):
    assert "data.path: missing" in refused(None)
    message = refused("nobody/nothing-of-this-name")
    assert "HF_HUB_OFFLINE" in message
    assert "local copy" in message
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    assert "can't read" in refused(tmp_path / "x.parquet")


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


@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_called_split_splits_what_is_not_streamed(tmp_path, streaming):
    words = ["val", "train", "train", "val", "train", "train"]
    path = str(frame(tmp_path / "x.parquet", image=PICTURES, text=TEXTS, split=words))
    train, test = (
        open_rows(path, split, streaming=streaming, test_share=0.0) for split in ("train", "test")
    )
    if streaming:
        assert not everything(test)
        assert "a stream does not follow its column split" in "".join(train.account.lines())
    else:
        assert [record.name for record in everything(test)] == ["train/0", "train/3"]
        assert len(train) == 4


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
