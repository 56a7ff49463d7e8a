"""Pictures as people have them: what is plain is read, what isn't stops with a line that says how
to say it, and no file is passed over in silence."""

import json
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
from helpers import data_settings, open_data
from made_pictures import as_classes, as_folder, items

from fluxsmith.config.data_section import DataConfig
from fluxsmith.data import build_loader, load
from fluxsmith.data.sources import open_source
from fluxsmith.errors import UserError

MADE = items(6)
open_folder = partial(open_data, "folder")


def put(root: Path, files: dict[str, object]) -> Path:
    """Files by name: numbers are pictures, everything else is text."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            (root / name).write_bytes(MADE[content][0])
        elif isinstance(content, bytes):
            (root / name).write_bytes(content)
        else:
            (root / name).write_text(str(content), encoding="utf-8")
    return root


def pictures(pattern: str, n: int = 6) -> dict[str, object]:
    return {pattern.format(i): i for i in range(n)}


def texts(pattern: str, text: str = "a boat {}", n: int = 6) -> dict[str, object]:
    return {pattern.format(i): text.format(i) for i in range(n)}


def rows(names: Iterable[str], separator: str = ",", header: str = "file_name,text") -> str:
    lines = (f'{name}{separator}"a boat, {i}"' for i, name in enumerate(names))
    return "\n".join([header.replace(",", separator), *lines]) + "\n"


def everything(root: Path, **options) -> dict[str, tuple[str, ...]]:
    """The captions of every picture that can be used, by name."""
    both = [open_folder(root, split, **options) for split in ("train", "test")]
    return {r.name: r.captions for records in both for r in records if not r.fault}


def boats(root: Path, **options) -> list[str]:
    return sorted(text for ways in everything(root, **options).values() for text in ways)


def refused(root: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        open_folder(root, "train", **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def faults(root: Path, **options) -> dict[str, str]:
    both = [open_folder(root, split, **options) for split in ("train", "test")]
    return {r.name: r.fault for records in both for r in records if r.fault}


BOATS = [f"a boat {i}" for i in range(6)]
TABLED = [f"a boat, {i}" for i in range(6)]


@pytest.mark.parametrize(
    "files",
    [
        pictures("10_boat/{}.png") | texts("10_boat/{}.caption"),
        pictures("set/{}.JPG") | texts("set/{}.TXT"),
        pictures("set/{}.jpg") | texts("set/{}.jpg.txt"),
        pictures("set/{}.jpg") | texts("set/{}.json", '{{"caption": "a boat {}"}}'),
        pictures("images/{}.jpg") | texts("captions/{}.txt"),
        pictures("train/images/{}.jpg") | texts("train/captions/{}.txt"),
        pictures("{}.jpg") | texts("captions/{}.txt"),
        pictures("images/{}.jpg") | texts("images/{}.txt"),
        pictures("img/10_boat/{}.jpg") | texts("img/10_boat/{}.txt"),
        pictures("text/{}.jpg") | texts("text/{}.txt"),
        pictures("images/IMG_{}.JPG") | texts("images/img_{}.txt"),
        pictures("e\u0301{}.jpg") | texts("é{}.txt"),
        pictures("{}.jpg") | texts("{}.json", '["a boat {}"]'),
        pictures("{}.jpg") | texts("{}.text"),
    ],
)
def test_texts_beside_pictures_are_found(tmp_path, files):
    assert boats(put(tmp_path, files)) == BOATS


NAMES = [f"{i}.png" for i in range(6)]
ENTRIES = [{"file_name": f"{i}.png", "text": f"a boat, {i}"} for i in range(6)]


@pytest.mark.parametrize(
    "files",
    [
        pictures("train/{}.png") | {"train/metadata.csv": rows(NAMES)},
        pictures("train/{}.png") | {"metadata.csv": rows(f"train/{name}" for name in NAMES)},
        pictures("pics/{}.png") | {"Metadata.CSV": rows(f"pics/{name}" for name in NAMES)},
        pictures("{}.png") | {"metadata.csv": rows(NAMES, ";")},
        pictures("{}.png") | {"metadata.tsv": rows(NAMES, "\t")},
        pictures("{}.png") | {"metadata.csv": rows(NAMES, header=" image , prompt ")},
        pictures("{}.png") | {"captions.csv": rows(NAMES)},
        pictures("Images/{}.png") | {"captions.txt": rows(NAMES, header="image,caption")},
        pictures("{}.png") | {"metadata.csv": "\ufeff" + rows(NAMES, ";")},
        pictures("{}.PNG") | {"metadata.csv": rows(NAMES)},
        pictures("{}.png") | {"metadata.csv": rows(str(i) for i in range(6))},
        pictures("a/{}.png") | {"metadata.csv": rows(f"a\\{name}" for name in NAMES)},
        pictures("é{}.png") | {"metadata.csv": rows(f"e\u0301{name}" for name in NAMES)},
        pictures("{}.png") | {"metadata.csv": rows(NAMES).encode("utf-16")},
        pictures("{}.png") | {"metadata.csv": rows(NAMES).replace("\n", "\r")},
        pictures("{}.png") | {"metadata.csv": "sep=;\n" + rows(NAMES, ";")},
        pictures("{}.png") | {"metadata.csv": rows(NAMES, header="File Name,Caption")},
        pictures("{}.jpg") | {"metadata.csv": rows(NAMES)},
        pictures("{}.png") | {"metadata.json": json.dumps(ENTRIES)},
        pictures("{}.png") | {"metadata.json": json.dumps({"data": ENTRIES, "version": 1})},
        pictures("{}.png") | {"metadata.json": json.dumps({"file_name": NAMES, "text": TABLED})},
        pictures("{}.png")
        | {
            "metadata.json": json.dumps(
                {"file_name": dict(enumerate(NAMES)), "text": dict(enumerate(TABLED))}
            )
        },
        pictures("{}.png")
        | {
            "metadata.jsonl": "\n".join(
                json.dumps({"file_name": i, "text": t}) for i, t in enumerate(TABLED)
            )
        },
        pictures("{}.png") | {"metadata.json": json.dumps(dict(zip(NAMES, TABLED, strict=True)))},
    ],
)  # fmt: skip
def test_tables_are_found_wherever_and_however_they_are_kept(tmp_path, files):
    assert boats(put(tmp_path, files)) == TABLED


def test_a_table_in_each_folder_names_its_own_pictures(tmp_path):
    for folder in "ab":
        put(tmp_path / folder, pictures("{}.png", 2))
        lines = "".join(f"{i}.png,{folder}{i}\n" for i in range(2))
        (tmp_path / folder / "metadata.csv").write_text("file_name,text\n" + lines)
    assert everything(tmp_path)["b/1.png"] == ("b1",)
    assert boats(tmp_path) == ["a0", "a1", "b0", "b1"]


def test_a_table_of_parquet_is_read(tmp_path):
    pandas = pytest.importorskip("pandas")
    put(tmp_path, pictures("train/{}.png"))
    made = pandas.DataFrame({"file_name": NAMES, "text": TABLED})
    made.to_parquet(tmp_path / "train" / "metadata.parquet")
    assert boats(tmp_path) == TABLED


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (pictures("train/{}.png") | {"train/metadata.json1": "{}"}, "metadata.json1"),
        (pictures("a/{}.png") | texts("notes/{}_.txt"), "would lie unused"),
        (pictures("images/{}.png"), "all images lie in one folder, images"),
        (pictures("train/{}.png", 3) | pictures("bus/{}.png", 3), "or is a class"),
        (pictures("10_a/{}.png") | pictures("2_b/{}.png"), "may mean repeats"),
        (pictures("{}.png") | texts("{}.txt") | {"metadata.csv": rows(NAMES)}, "data.captions="),
        (pictures("{}.png"), "data.captions=name or none"),
        (pictures("{}.png") | {"metadata.csv": "0.png,a boat\n1.png,b\n"}, "first line must name"),
        (pictures("{}.png") | {"metadata.csv": rows(NAMES, header="a,b")}, "has the columns a, b"),
        (pictures("a/{}.png") | pictures("b/{}.png") | texts("a/{}.tags"), "a/0.tags, a/1.tags"),
        (pictures("a/{}.png") | pictures("b/{}.png") | {"captions.xlsx": b"x"}, "captions.xlsx"),
        (pictures("{}.png") | {"metadata.csv.gz": b"x"}, "passed over 1 (ending .gz, which"),
        (pictures("train-a/{}.png") | pictures("train-b/{}.png"), "may be splits or classes"),
        (
            pictures("data/cat/{}.png") | pictures("data/dog/{}.png"),
            "if its folders are classes, set",
        ),
        (
            pictures("{}.png") | {"x.csv": rows(NAMES).replace("text", "text,text")},
            "are called text",
        ),
        (pictures("{}.png") | {"x.csv": rows(NAMES).encode("utf-16-le")}, "it holds zero bytes"),
        (
            pictures("{}.png") | {"x.csv": "file_name,text\n0.png,é\n".encode("latin-1")},
            "x.csv, line 2:",
        ),
        (
            pictures("{}.png") | {"x.csv": 'file_name,text\n0.png,a\n1.png,"b\n2.png,c\n'},
            "line 3: a quote",
        ),
        (
            pictures("{}.png") | {"x.csv": "file_name,text,split\n0.png,a,holdout\n"},
            "x.csv, line 2: its split is holdout, which is none of train",
        ),
        ({"notes.md": "no pictures"}, "passed over 1 (ending .md, which is no image's): notes.md"),
    ],
)
def test_what_is_not_plain_stops_with_a_line(tmp_path, files, names):
    assert names in refused(put(tmp_path, files))


def test_what_is_not_plain_can_be_said(tmp_path):
    put(tmp_path, pictures("train/{}.png", 3) | pictures("bus/{}.png", 3))
    found = everything(tmp_path, captions="class")
    assert found["train/0.png"] == ("a photo of a train",)
    put(tmp_path / "b", pictures("a red_boat {}.png"))
    assert everything(tmp_path / "b", captions="name")["a red_boat 3.png"] == ("a red boat 3",)
    assert set(everything(tmp_path / "b", captions="none").values()) == {("",)}
    assert set(everything(tmp_path / "b", caption="a boat").values()) == {("a boat",)}
    templates = ["ohwx, {}", "{}"]
    ways = everything(tmp_path / "b", caption="a boat", templates=templates)["a red_boat 0.png"]
    assert ways == ("ohwx, a boat", "a boat")


def test_splits_are_known_by_their_usual_names(tmp_path):
    for train, test in (
        ("Train", "Val"),
        ("training", "testing"),
        ("train", "dev"),
        ("TRAIN", "eval"),
    ):
        root = put(tmp_path / train, pictures(f"{train}/a{{}}.png") | texts(f"{train}/a{{}}.txt"))
        put(root, pictures(f"{test}/b{{}}.png", 2) | texts(f"{test}/b{{}}.txt", n=2))
        sides = [[r.name[-6] for r in open_folder(root, split)] for split in ("train", "test")]
        assert sides == [["a"] * 6, ["b"] * 2]
    put(tmp_path / "Train", pictures("test/c{}.png", 2) | texts("test/c{}.txt", n=2))
    train = open_folder(tmp_path / "Train", "train")
    assert len(train) == 6
    assert "passed over 2 (of val, while test has the test images)" in "".join(
        train.account.lines()
    )


@pytest.mark.parametrize(
    "names",
    [
        ("train_images", "val_images"),
        ("train2017", "val2017"),
        ("trainset", "testset"),
        ("trainA", "testA"),
    ],
)
def test_folders_with_the_names_of_both_splits_in_theirs_split(tmp_path, names):
    for name, n in zip(names, (6, 2), strict=True):
        put(tmp_path, pictures(f"{name}/{{}}.png", n) | texts(f"{name}/{{}}.txt", n=n))
    sides = [open_folder(tmp_path, split) for split in ("train", "test")]
    assert [{r.name.split("/")[0] for r in side} for side in sides] == [{names[0]}, {names[1]}]
    put(tmp_path, pictures("other/{}.png") | texts("other/{}.txt"))  # so they may be classes
    train = open_folder(tmp_path, "train")
    assert {r.name.split("/")[0] for r in train} == {*names, "other"}
    assert f"{', '.join(sorted(names))} split nothing" in "".join(train.account.lines())


def test_what_is_read_in_place_of_something_else_is_said(tmp_path):
    table = rows(NAMES, header="file_name,text,caption").replace('"\n', '",other\n')
    put(tmp_path / "a", pictures("{}.jpg") | {"metadata.csv": table})
    assert list(open_folder(tmp_path / "a", "train").account.lines()) == [
        "captions are read from metadata.csv: text of the image in file_name, and caption not",
        "metadata.csv gives 6 images other endings: 0.png for 0.jpg, 1.png for 1.jpg, "
        "2.png for 2.jpg, ...",
    ]
    put(tmp_path / "b", pictures("10_boat/{}.png") | texts("10_boat/{}.txt", "a\nb"))
    assert list(open_folder(tmp_path / "b", "train").account.lines()) == [
        "texts have several lines, and each line is a caption of its own; data.whole_text=true "
        "makes a text one caption",
        "the numbers before 10_boat repeat nothing; data.path={FOLDER: REPEATS} does",
    ]
    put(tmp_path / "c", pictures("animal/cat/{}.png") | pictures("thing/{}.png"))
    (line,) = open_folder(tmp_path / "c", "train").account.lines()
    assert line.endswith("; folders inside them say nothing, such as animal/cat/0.png")


def test_whole_paths_in_a_table_are_those_below_the_folder(tmp_path):
    put(tmp_path, pictures("{}.png") | {"x.csv": rows(f"{tmp_path}/{name}" for name in NAMES)})
    assert set(everything(tmp_path)) == set(NAMES)
    assert not open_folder(tmp_path, "train").account.passed


@pytest.mark.parametrize("place", ["/mnt/old/{}", "C:\\Users\\me\\set\\{}", "\\\\nas\\{}"])
def test_whole_paths_of_elsewhere_are_found_by_their_ends(tmp_path, place):
    """By as much of them as leads to an image, which is said."""
    names = ["a/0.png", "b/0.png", "1.png"]
    files = dict(zip(names, range(3), strict=True))
    table = {name: {"caption": f"a boat, {i}"} for i, name in enumerate(names)}
    moved = {place.format(name.replace("/", "\\")): about for name, about in table.items()}
    put(tmp_path, files | {"meta_cap.json": json.dumps(moved)})
    assert everything(tmp_path) == {name: (f"a boat, {i}",) for i, name in enumerate(names)}
    assert any("found by their ends: " in x for x in open_folder(tmp_path, "train").account.lines())


def test_two_paths_of_elsewhere_that_lead_to_one_image_are_not_both_its(tmp_path):
    lines = '/old/a/0.png,"one"\n/old/b/0.png,"two"\n'
    put(tmp_path, pictures("{}.png", 2) | {"x.csv": f"file_name,text\n{lines}1.png,three\n"})
    assert everything(tmp_path) == {"0.png": ("one",), "1.png": ("three",)}
    (fault,) = faults(tmp_path).values()
    assert fault == "/old/a/0.png is the same image here"


def test_words_for_nothing_in_a_csv_are_nothing(tmp_path):
    lines = "".join(f"{i}.png,{word}\n" for i, word in enumerate(["nan", "NULL", "None", "a"]))
    put(tmp_path, pictures("{}.png", 4) | {"x.csv": "file_name,text\n" + lines})
    assert everything(tmp_path) == {"3.png": ("a",)} | {f"{i}.png": () for i in range(3)}


def test_a_caption_of_any_length_in_a_csv_is_a_caption(tmp_path):
    long = "word " * 50_000
    put(tmp_path, pictures("{}.png", 1) | {"x.csv": f"file_name,text\n0.png,{long}\n"})
    assert everything(tmp_path) == {"0.png": (long.strip(),)}


def test_tables_called_after_splits_split(tmp_path):
    put(tmp_path, pictures("{}.png") | {"train.csv": rows(NAMES[:4]), "test.csv": rows(NAMES[4:])})
    test = [record.name for record in open_folder(tmp_path, "test")]
    assert test == ["4.png", "5.png"]


@pytest.mark.parametrize(
    ("field", "captions"),
    [
        ('"[""one"", ""it\'s two""]"', ("one", "it's two")),
        ("\"['one', 'two']\"", ("one", "two")),
        ("\"['one']\"", ("one",)),
        ("[ohwx] dog", ("[ohwx] dog",)),
        ("[1girl]", ("[1girl]",)),
        ("[3]", ("[3]",)),
        ("\"['one' 'two']\"", ("['one' 'two']",)),  # which Python would take for one text
    ],
)
def test_a_list_in_a_field_is_several_captions(tmp_path, field, captions):
    put(tmp_path, pictures("{}.png", 1) | {"x.csv": f"file_name,text\n0.png,{field}\n"})
    assert everything(tmp_path) == {"0.png": captions}


def test_rows_of_one_image_are_one_image(tmp_path):
    put(tmp_path, pictures("{}.png") | {"metadata.csv": rows([*NAMES, *NAMES])})
    train, test = (open_folder(tmp_path, s, test_share=0.3) for s in ("train", "test"))
    assert len(train) + len(test) == 6
    assert not {r.name for r in train} & {r.name for r in test}
    assert all(len(r.captions) == 2 for r in (*train, *test))


@pytest.mark.parametrize("bad", range(5))
def test_beside_bad_rows_a_single_image_is_trained_on(tmp_path, bad):
    table = "file_name,text\n0.png,a boat\n" + f"{bad}.jpg,too,many\n"
    put(tmp_path, {"0.png": 0, "metadata.csv": table})
    assert "0.png" in [record.name for record in open_folder(tmp_path, "train")]


def test_every_file_is_accounted_for(tmp_path):
    put(tmp_path / "x", pictures("{}.png", 3) | {"metadata.csv": rows(NAMES[:2])})
    put(tmp_path / "x", {"film.mp4": "", ".DS_Store": "", "Thumbs.db": "", "README.md": ""})
    put(tmp_path / "x", {"note.txt": "?"})
    (tmp_path / "x" / "lost.png").symlink_to("nowhere.png")
    (tmp_path / "x" / "loop").symlink_to(tmp_path / "x")
    (tmp_path / "x" / "self.png").symlink_to(tmp_path / "x" / "self.png")
    put(tmp_path / "y", pictures("{}.png", 1))
    (tmp_path / "x" / "linked").symlink_to(tmp_path / "y")
    records = open_folder(tmp_path / "x", "train", test_share=0.0)
    assert len(records) == 2
    assert {reason: sorted(names) for reason, names in records.account.passed.items()} == {
        "no row in metadata.csv": ["2.png", "linked/0.png"],
        "ending .mp4, which is no image's": ["film.mp4"],
        "hidden or system file": [".DS_Store", "Thumbs.db"],
        "about the data": ["README.md"],
        "text beside a table": ["note.txt"],
        "broken link": ["lost.png", "self.png"],
        "link that leads in a circle": ["loop"],
    }


def test_rows_that_cannot_be_used_are_named_and_the_others_read(tmp_path):
    table = (
        'file_name,text\n0.png,a boat 0\n1.png,a cat, a dog\n,nobody\n3.png,"a quote" lost\n'
        "4.png,a boat 4\n9.png,a ghost\n"
    )
    put(tmp_path, pictures("{}.png") | {"metadata.csv": table})
    found = faults(tmp_path)
    assert found["metadata.csv, line 3 (1.png)"].startswith("it has 3 fields and the header has 2")
    assert found["metadata.csv, line 4"] == "it has no file_name"
    assert "mend the quotes" in found["metadata.csv, line 5"]
    assert set(everything(tmp_path)) == {"0.png", "4.png", "9.png"}
    with pytest.raises(
        UserError, match=r"4 of 6 images can't be used.*the first is metadata\.csv, line 3"
    ):
        load(data_settings("folder", tmp_path, test_share=0.0), "train")
    assert len(load(data_settings("folder", tmp_path, test_share=0.0, max_bad=1.0), "train")) == 2


@pytest.mark.parametrize(
    ("caption", "why"),
    [
        (7, "its caption is the number 7; name the classes in data.class_names"),
        ({"raw": "x"}, "its caption is an object with raw; data.caption_key=NAME.raw"),
        (0.5, "its caption is float, not text"),
        (2.0, "its caption is the number 2; name"),
        (True, "its caption is bool, not text"),
        (["a", 3], "its caption is the number 3"),
    ],
)
def test_captions_that_are_no_texts_are_named_by_their_type(tmp_path, caption, why):
    lines = [{"file_name": n, "text": t} for n, t in zip(NAMES, [caption, *BOATS], strict=False)]
    jsonl = "\n".join(map(json.dumps, lines))
    put(tmp_path, pictures("{}.png") | {"metadata.jsonl": jsonl})
    assert faults(tmp_path)["0.png"].startswith(why)
    assert len(everything(tmp_path)) == 5


def test_numbers_of_classes_get_names_or_templates(tmp_path):
    lines = [json.dumps({"file_name": n, "label": i % 2}) for i, n in enumerate(NAMES)]
    put(tmp_path, pictures("{}.png") | {"metadata.jsonl": "\n".join(lines)})
    named = open_folder(tmp_path, "train", class_names=["cat", "sea_horse"], test_share=0.0)
    assert named.classes == ("cat", "sea_horse")
    assert (named[1].captions, named[1].label) == (("a photo of a sea horse",), 1)
    plain = open_folder(tmp_path, "train", templates=["digit {}"], test_share=0.0)
    assert (plain[1].captions, plain[1].label) == (("digit 1",), None)


def test_dotted_keys_lead_into_objects_and_lists_of_them(tmp_path):
    line = '{"file_name": "0.png", "captions": [{"raw": "a", "id": 1}, {"raw": "b", "id": 2}]}'
    put(tmp_path, pictures("{}.png", 1) | {"metadata.jsonl": line})
    assert everything(tmp_path, caption_key="captions.raw") == {"0.png": ("a", "b")}


def test_templates_and_shuffled_tags(tmp_path):
    put(tmp_path, pictures("{}.png", 1) | texts("{}.txt", "boat, red, sea, sun, sky", 1))
    (ways,) = everything(tmp_path, templates=["ohwx, {}"], shuffle_tags=2).values()
    assert len(ways) > 4
    for way in ways:
        assert way.startswith("ohwx, boat, ")
        assert sorted(way.split(", ")) == ["boat", "ohwx", "red", "sea", "sky", "sun"]
    assert ways == next(iter(everything(tmp_path, templates=["ohwx, {}"], shuffle_tags=2).values()))


def test_several_folders_with_repeats(tmp_path):
    for name in "ab":
        as_folder(tmp_path / name, MADE, "txt")
    paths = [str(tmp_path / name) for name in "ab"]
    both = load(
        data_settings("folder", in_memory="auto").model_copy(update={"path": paths}), "train"
    )
    assert len(both) == 10  # each of them holds out one
    settings = data_settings("folder").model_copy(
        update={"path": {paths[0]: 1, paths[1]: 3}, "test_share": 0.0}
    )
    loader = build_loader(settings, 24, seed=0)
    captions = loader.batch(0).captions
    assert sorted(captions) == sorted(4 * [caption for _, caption in MADE])
    as_classes(tmp_path / "c", MADE, ["x", "y"])
    as_classes(tmp_path / "d", MADE, ["y", "z"])
    classes = [str(tmp_path / name) for name in "cd"]
    joined = load(
        data_settings("folder").model_copy(update={"path": classes, "test_share": 0.0}), "train"
    )
    assert joined.classes.names == ("x", "y", "z")
    assert joined.class_labels.bincount().tolist() == [3, 6, 3]
    mixed = data_settings("folder").model_copy(update={"path": [classes[0], paths[0]]})
    assert load(mixed, "train").classes is None  # free text


def test_a_set_without_a_picture_that_opens_names_the_first(tmp_path):
    put(tmp_path, {"0.png": b"x", "0.txt": "a boat"})
    with pytest.raises(UserError, match=r"no image can be used; 0\.png: no image that Pillow"):
        load(data_settings("folder", tmp_path, max_bad=1.0), "train")


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_images_are_a_set(tmp_path, n):
    for name in ("photo44", "a"):  # the first of which would be held out by its name alone
        put(tmp_path / name, {f"{name}{i or ''}.png": i for i in range(n)})
        put(tmp_path / name, {f"{name}{i or ''}.txt": "a cat" for i in range(n)})
        sizes = [len(load(data_settings("folder", tmp_path / name), s)) for s in ("train", "test")]
        assert sizes == [1, n - 1]


@pytest.mark.parametrize("kind", ["avif", "jfif", "gif", "tiff", "bmp", "webp"])
def test_whatever_the_library_decodes_is_read(tmp_path, kind):
    from PIL import Image, features

    if kind == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no avif")
    picture = Image.new("RGB", (8, 8), "red")
    picture.save(tmp_path / f"0.{kind}", format="JPEG" if kind == "jfif" else None)
    put(tmp_path, texts("{}.txt", n=1))
    data = load(data_settings("folder", tmp_path, image_size=8, channels=3), "train")
    assert data.images[0].float().mean(dim=(1, 2)).round().tolist()[0] > 240


@pytest.mark.parametrize("layout", ["images/{}/{}.png", "cat/{}/{}.png"])
def test_splits_are_known_wherever_they_stand_on_the_way_to_an_image(tmp_path, layout):
    for split, names in (("train", "abc"), ("val", "de")):
        put(tmp_path, {layout.format(split, name): i for i, name in enumerate(names)})
        put(tmp_path, {f"captions/{split}/{name}.txt": name for name in names})
    captions = "class" if layout.startswith("cat") else None
    sides = [open_folder(tmp_path, split, captions=captions) for split in ("train", "test")]
    assert [[Path(r.name).stem for r in side] for side in sides] == [list("abc"), list("de")]
    assert sides[1][0].captions == (("a photo of a cat",) if captions else ("d",))


def test_a_column_called_split_splits(tmp_path):
    lines = [f'{name},"a boat",{"val" if i < 2 else "train"}' for i, name in enumerate(NAMES)]
    put(tmp_path, pictures("{}.png") | {"x.csv": "\n".join(["file_name,text,split", *lines])})
    assert [record.name for record in open_folder(tmp_path, "test")] == NAMES[:2]
    assert len(open_folder(tmp_path, "train")) == 4


def test_a_column_called_split_splits_a_folder_called_train(tmp_path):
    lines = [f'{name},"a boat",{"test" if i < 2 else "train"}' for i, name in enumerate(NAMES)]
    table = "\n".join(["file_name,text,split", *lines])
    put(tmp_path, pictures("train/{}.png") | {"metadata.csv": table})
    assert [r.name for r in open_folder(tmp_path, "test")] == [f"train/{n}" for n in NAMES[:2]]
    assert len(open_folder(tmp_path, "train")) == 4
    put(tmp_path, {"metadata.csv": rows(NAMES)})  # which tells no splits
    assert len(open_folder(tmp_path, "train", test_share=0.0)) == 6


def test_few_test_pictures_may_have_a_bad_one_among_them(tmp_path):
    put(tmp_path, pictures("train/{}.png") | texts("train/{}.txt"))
    put(tmp_path, pictures("test/{}.png", 2) | texts("test/{}.txt", n=2))
    (tmp_path / "test" / "0.png").write_bytes(b"no picture")
    assert len(load(data_settings("folder", tmp_path), "test")) == 1
    (tmp_path / "train" / "0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="1 of 6 images can't be used"):
        load(data_settings("folder", tmp_path), "train")


def test_where_no_caption_can_be_used_a_line_says_why(tmp_path):
    put(tmp_path, pictures("{}.png") | texts("{}.txt", "word " * 99))
    settings = data_settings("folder", tmp_path, in_memory=False)
    with pytest.raises(UserError, match=r"no image has a caption .*: too long"):
        build_loader(settings, 2, 0, fault=lambda text: "too long").captions()


def test_a_class_folder_whose_name_is_not_utf_8_is_a_class(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    try:
        as_classes(tmp_path, MADE, [name, "tea"])
    except OSError:
        pytest.skip("this file system takes no such name")
    found = load(data_settings("folder", tmp_path, captions="class"), "train")
    assert all(text.encode() for ways in found.captions for text in ways)


def test_a_bare_name_finds_the_only_picture_that_is_called_so(tmp_path):
    put(tmp_path, pictures("images/{}.png") | {"metadata.csv": rows(NAMES)})
    assert boats(tmp_path) == TABLED
    put(tmp_path, {"other/0.png": 1})  # now the name could mean two
    assert "images/0.png" not in everything(tmp_path)


def test_a_text_belongs_to_the_image_of_just_its_name(tmp_path):
    files: dict[str, object] = {"A.png": 0, "a.png": 1, "A.txt": "upper", "a.txt": "lower"}
    put(tmp_path, files | {"masks/A.png": 2})
    if len(list(tmp_path.glob("*.png"))) < 2:
        pytest.skip("this file system takes A and a for the same")
    assert everything(tmp_path) == {"A.png": ("upper",), "a.png": ("lower",), "masks/A.png": ()}


def test_a_bare_name_of_two_images_names_both(tmp_path):
    put(
        tmp_path,
        pictures("a/{}.png", 1) | pictures("b/{}.png", 2) | {"metadata.csv": rows(NAMES[:2])},
    )
    assert "a/0.png or b/0.png" in faults(tmp_path)["metadata.csv, line 2 (0.png)"]
    assert everything(tmp_path) == {"b/1.png": ("a boat, 1",)}


def test_an_image_in_both_tables_is_tested_on(tmp_path):
    put(
        tmp_path,
        pictures("{}.png", 3) | {"test.csv": rows(NAMES[:2]), "train.csv": rows(NAMES[:3])},
    )
    assert [r.name for r in open_folder(tmp_path, "test")] == ["0.png", "1.png"]
    assert [r.name for r in open_folder(tmp_path, "train") if not r.fault] == ["2.png"]


def test_a_table_for_testing_alone_stops(tmp_path):
    put(tmp_path, pictures("{}.png") | {"captions_val2017.csv": rows(NAMES)})
    assert "all for testing, by the name val" in refused(tmp_path)


def test_digits_in_a_column_of_labels_are_classes(tmp_path):
    lines = "".join(f"{i}.png,{i % 2}\n" for i in range(6))
    put(tmp_path, pictures("{}.png") | {"metadata.csv": "file_name,label\n" + lines})
    assert set(faults(tmp_path).values()) == {
        f"its caption is the number {i}; name the classes in data.class_names, or set "
        f"data.templates=['a {{}}']"
        for i in range(2)
    }
    named = everything(tmp_path, class_names=["owl", "boat"])
    assert named["1.png"] == ("a photo of a boat",)
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,owl\n1.png,1\n2.png,a cat\n")
    named = everything(tmp_path, class_names=["owl", "boat"])
    assert named == {"0.png": ("a photo of a owl",), "1.png": ("a photo of a boat",)}
    (why,) = faults(tmp_path, class_names=["owl", "boat"]).values()
    assert why == "its label is 'a cat', not one of data.class_names"


def test_a_folder_named_twice_comes_twice_and_none_is_an_error(tmp_path):
    put(tmp_path, pictures("a/{}.png", 1) | texts("a/{}.txt", n=1))
    keys = {"source": "folder", "path": [str(tmp_path / "a")] * 2}
    assert len(open_source(DataConfig.model_validate(keys), "train")) == 2
    with pytest.raises(UserError, match=r"data\.path: names nothing"):
        open_source(DataConfig.model_validate(keys | {"path": []}), "train")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("0.tar.gz", "data.source=webdataset"), ("a.zip", "unpack a.zip"), ("a.parquet", "source=hf")],
)
def test_a_folder_of_something_else_says_what_reads_it(tmp_path, name, hint):
    assert hint in refused(put(tmp_path, {name: b"x"}))


def test_tables_beside_shards_and_a_file_for_a_folder_say_so_too(tmp_path):
    put(tmp_path, {"0.parquet": b"x", "0.tar": b"x"})
    assert "data.source=webdataset" in refused(tmp_path)
    put(tmp_path, {"a.csv": "x"})
    assert "is no folder; name the one that it lies in" in refused(tmp_path / "a.csv")


@pytest.mark.parametrize("tables", [("train.csv", "test.csv"), ("metadata.csv",)])
def test_a_name_of_two_images_is_that_of_its_rows_split(tmp_path, tables):
    put(tmp_path, pictures("train/{}.png") | pictures("test/{}.png"))
    lines = {s: [f"{n},of {s} {i},{s}" for i, n in enumerate(NAMES)] for s in ("train", "test")}
    for table in tables:
        own = lines.get(table.removesuffix(".csv"), lines["train"] + lines["test"])
        put(tmp_path, {table: "\n".join(["file_name,text,split", *own])})
    for split in ("train", "test"):
        found = {r.name: r.captions for r in open_folder(tmp_path, split)}
        assert found == {f"{split}/{n}": (f"of {split} {i}",) for i, n in enumerate(NAMES)}


def test_names_that_begin_with_the_folders_own_are_found(tmp_path):
    table = rows(f"{tmp_path.name}/{name}" for name in NAMES)
    put(tmp_path, pictures("{}.png") | {"metadata.csv": table})
    assert boats(tmp_path) == TABLED


def test_addresses_on_the_web_are_named(tmp_path):
    table = rows(["https://example.org/a.png", *NAMES])
    put(tmp_path, pictures("{}.png") | {"metadata.csv": table})
    bad = "metadata.csv, line 2 (https://example.org/a.png)"
    assert faults(tmp_path) == {bad: "it is an address on the web; fetch the pictures first"}


def test_folders_that_are_in_no_split_are_no_classes(tmp_path):
    put(tmp_path, pictures("train/{}/0.png", 2) | pictures("valid/{}/1.png", 2))
    put(tmp_path, pictures("unlabelled/a/{}.png", 2))
    notes = open_folder(tmp_path, "train").account.notes
    assert notes == ["captions are made of the names of folders: 0, 1"]


def test_a_broken_array_says_where_it_breaks(tmp_path):
    put(tmp_path, pictures("{}.png") | {"metadata.json": '[{"file_name": "0.png"},'})
    assert "metadata.json: " in refused(tmp_path) and "line 1 column" in refused(tmp_path)


def test_a_key_that_is_asked_for_must_be_there(tmp_path):
    put(tmp_path, pictures("{}.png") | {"metadata.csv": rows(NAMES, header="image,caption")})
    assert boats(tmp_path) == TABLED
    assert "has the columns caption" in refused(tmp_path, caption_key="text")


def test_a_row_that_cannot_be_used_is_of_its_images_split(tmp_path):
    """Also where a root table stands beside the folders of splits."""
    lines = ["train/0.png,a", "train/1.png,b,c", "test/2.png,d,e", "other/3.png,f,g", ",nobody"]
    table = "\n".join(["file_name,text", *lines, "9.png,a ghost", "test/4.png,h\n"])
    put(
        tmp_path, pictures("train/{}.png", 2) | {"test/2.png": 2, "test/4.png": 4, "other/3.png": 3}
    )
    put(tmp_path, {"metadata.csv": table, "test/metadata.csv": "file_name,text\n,nobody\n"})
    folder = tmp_path.rename(tmp_path.with_name("set"))
    names = {s: [r.name for r in open_folder(folder, s)] for s in ("train", "test")}
    bad = "metadata.csv, line {} ({})"
    assert sorted(names["train"]) == sorted(
        ["train/0.png", "9.png", bad.format(3, "train/1.png"), "metadata.csv, line 6"]
    )
    assert sorted(names["test"]) == sorted(
        ["test/4.png", bad.format(4, "test/2.png"), "test/metadata.csv, line 2"]
    )
    passed = open_folder(folder, "train").account.passed
    assert list(passed["not in train/"]) == [bad.format(5, "other/3.png")]


def test_a_table_in_a_folder_names_no_picture_of_another(tmp_path):
    """Of two folders with the same names one lacks a picture."""
    for folder, n in (("a", 2), ("b", 3)):
        put(tmp_path, pictures(f"{folder}/{{}}.png", n))
        lines = "".join(f"{i}.png,{folder}{i}\n" for i in range(3))
        put(tmp_path, {f"{folder}/metadata.csv": "file_name,text\n" + lines})
    put(tmp_path, {"2.png": 2})
    found = everything(tmp_path)
    assert found["b/2.png"] == ("b2",) and "2.png" not in found
    assert found["a/2.png"] == ("a2",) and not (tmp_path / "a/2.png").exists()  # a bad item


def test_whole_paths_of_elsewhere_find_no_picture_of_another_folder(tmp_path):
    put(tmp_path, pictures("a/{}.png", 2) | pictures("b/{}.png", 3) | {"5.png": 5})
    names = [f"/old/disk/{folder}/{i}.png" for folder in "ab" for i in range(3)]
    lines = "".join(f"{name},{name[10:13]}\n" for name in [*names, "/old/disk/5.png"])
    put(tmp_path, {"metadata.csv": "file_name,text\n" + lines})
    found = everything(tmp_path)
    assert found.pop("/old/disk/a/2.png") == ("a/2",)  # a bad item: there is no such file
    here = ["a/0.png", "a/1.png", *(f"b/{i}.png" for i in range(3))]
    assert found == {name: (name[:3],) for name in here} | {"5.png": ("5.p",)}


def test_the_longest_end_of_a_path_wins_whichever_row_it_is_in(tmp_path):
    lines = "/old/x/0.png,short\n/old/x/set/0.png,long\n"
    put(tmp_path, {"set/0.png": 0, "x.csv": "file_name,text\n" + lines})
    found = everything(tmp_path)
    assert found["set/0.png"] == ("long",)
    assert "short" not in found["set/0.png"]


@pytest.mark.parametrize("name", ["license_plate_{}", "readme {}", "LICENCE-{}"])
@pytest.mark.parametrize("ending", ["txt", "png.txt"])
def test_a_text_beside_an_image_is_no_text_about_the_data(tmp_path, name, ending):
    put(tmp_path, pictures(f"{name}.png") | texts(f"{name}.{ending}") | {"README.txt": "about"})
    assert boats(tmp_path) == BOATS
    assert open_folder(tmp_path, "train").account.passed == {"about the data": {"README.txt": None}}


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"A.png": 0, "a.png": 1, "a.txt": "low"}, {"A.png": (), "a.png": ("low",)}),
        ({"0.png": 0, "0.txt": "a", "images/0.png": 1}, {"0.png": ("a",), "images/0.png": ()}),
        ({"0.png": 0, "0.jpg": 1, "0.txt": "a"}, {"0.png": ("a",), "0.jpg": ("a",)}),
        (
            {"images/0.png": 0, "captions/0.txt": "a", "0.jpg": 1, "0.txt": "b"},
            {"images/0.png": ("a",), "0.jpg": ("b",)},
        ),
    ],
)
def test_a_text_that_is_plainly_of_one_image_is_no_others(tmp_path, files, found):
    put(tmp_path, files)
    if len(list(tmp_path.glob("*.png"))) < sum("/" not in n and ".png" in n for n in files):
        pytest.skip("this file system takes A and a for the same")
    assert everything(tmp_path) == found


def test_which_key_of_a_json_text_is_read_is_said(tmp_path):
    held = json.dumps({"text": "read off", "caption": "a boat", "prompt": "p"})
    put(tmp_path, pictures("{}.png", 2) | {"0.json": held, "1.json": held})
    (line,) = open_folder(tmp_path, "train").account.lines()
    assert line == "captions are read from text in json, and caption, prompt not"
    named = open_folder(tmp_path, "train", caption_key="caption")
    assert named[0].captions == ("a boat",) and not [*named.account.lines()]


@pytest.mark.parametrize(
    ("field", "number"), [("3.0", 3), ("-1", -1), (" 2 ", 2), ("0.00", 0), ("3.5", None)]
)
def test_numbers_of_classes_are_never_captions(tmp_path, field, number):
    put(tmp_path, pictures("{}.png", 1) | {"x.csv": f"file_name,label\n0.png,{field}\n"})
    if number is None:
        assert everything(tmp_path) == {"0.png": (field,)}
        return
    (why,) = faults(tmp_path).values()
    assert why.startswith(f"its caption is the number {number}; name the classes")
    names = {"class_names": ["a", "b", "c", "d"]}
    if number < 0:
        assert set(faults(tmp_path, **names).values()) == {"its label is -1, of 4 classes"}
    else:
        assert everything(tmp_path, **names) == {"0.png": (f"a photo of a {'abcd'[number]}",)}


@pytest.mark.parametrize("options", [{"caption": "ohwx"}, {"captions": "name"}])
def test_texts_beside_images_that_are_not_read_are_named(tmp_path, options):
    put(tmp_path, pictures("{}.png", 2) | texts("{}.txt", n=2))
    passed = open_folder(tmp_path, "train", **options).account.passed
    assert {why: [*names] for why, names in passed.items()} == {
        "text beside an image, not used": ["0.txt", "1.txt"]
    }


def test_several_texts_beside_an_image_are_said_to_be_captions(tmp_path):
    put(tmp_path, pictures("{}.png", 2) | texts("{}.txt", "1girl", 2) | texts("{}.caption", n=1))
    assert everything(tmp_path) == {"0.png": ("a boat 0", "1girl"), "1.png": ("1girl",)}
    (line,) = open_folder(tmp_path, "train").account.lines()
    assert line.startswith("images have several texts, such as 0.caption, 0.txt, and each is a cap")


def test_accents_are_the_same_wherever_a_caption_comes_from(tmp_path):
    apart = "cafe\u0301"
    put(tmp_path / "a", pictures("{}.png", 1) | {"0.txt": apart})
    assert everything(tmp_path / "a") == {"0.png": ("café",)}
    assert everything(tmp_path / "a", caption=apart) == {"0.png": ("café",)}
    assert everything(tmp_path / "a", templates=[apart + " {}"]) == {"0.png": ("café café",)}
    put(tmp_path / "b", {f"{apart}/0.png": 0, "café/1.png": 1, "tea/2.png": 2})
    records = open_folder(tmp_path / "b", "train", test_share=0.0)
    assert list(records.classes) == ["café", "tea"]
    assert sorted(r.captions for r in records) == [("a photo of a café",)] * 2 + [
        ("a photo of a tea",)
    ]
    put(tmp_path / "c", pictures("{}.png", 1) | {"x.csv": f"file_name,label\n0.png,{apart}\n"})
    named = everything(tmp_path / "c", class_names=["tea", "café"])
    assert named == {"0.png": ("a photo of a café",)}


def test_a_dotted_key_leads_to_the_name_of_an_image(tmp_path):
    lines = [{"image": {"path": name}, "text": TABLED[i]} for i, name in enumerate(NAMES)]
    table = "\n".join(map(json.dumps, [*lines, {"image": {}, "text": "nobody"}]))
    put(tmp_path, pictures("{}.png") | {"metadata.jsonl": table})
    assert boats(tmp_path, image_key="image.path") == TABLED
    assert set(faults(tmp_path, image_key="image.path").values()) == {"it has no image.path"}


def test_lines_of_json_with_commas_between_them_and_addresses_of_files_are_read(tmp_path):
    put(tmp_path, pictures("{}.png") | pictures("x y/{}.png"))
    addresses = [f"file://{tmp_path}/0.png", "file:///old/x%20y/1.png"]
    names = [*addresses, *NAMES[2:]]
    lines = [json.dumps({"file_name": n, "text": f"a boat, {i}"}) for i, n in enumerate(names)]
    put(tmp_path, {"metadata.jsonl": ",\r\n".join(lines)})
    found = everything(tmp_path)
    assert (found["0.png"], found["x y/1.png"]) == (("a boat, 0",), ("a boat, 1",))
    assert boats(tmp_path) == TABLED


def test_a_split_is_known_with_blanks_around_it(tmp_path):
    lines = "0.png,a, TEST \n1.png,b,train\n2.png,c, \n"
    put(tmp_path, pictures("{}.png", 3) | {"x.csv": "file_name,text,Split\n" + lines})
    assert [r.name for r in open_folder(tmp_path, "test")] == ["0.png"]
    assert [r.name for r in open_folder(tmp_path, "train")] == ["1.png", "2.png"]


def test_a_share_that_is_not_held_out_is_said(tmp_path):
    put(tmp_path, pictures("train/{}.png") | texts("train/{}.txt"))
    put(tmp_path, pictures("test/{}.png", 2) | texts("test/{}.txt", n=2))
    for share, said in ((0.5, True), (0.0, False), (0.05, False)):
        notes = open_folder(tmp_path, "train", test_share=share).account.notes
        assert notes == ["data.test_share=0.5 does nothing: test has the test images"] * said
