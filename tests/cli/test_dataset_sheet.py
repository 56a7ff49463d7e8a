"""`fluxsmith data`: what is in a data set, what is wrong with it, and a sheet of it."""

import pytest
from made_pictures import as_classes, as_folder, as_shards, items
from PIL import Image

from fluxsmith.cli import main
from fluxsmith.cli.dataset_sheet import dataset_sheet
from fluxsmith.config.reading import build_config
from fluxsmith.errors import UserError

MADE = items(30, size=16)


def looked(source, sheet=None, **data):
    config = build_config(
        {"name": "x", "data": {"source": source, "image_size": 8, "channels": 3, **data}}
        | {"model": {"patch_size": 8}},
        "test",
    )
    return dataset_sheet(config, sheet)


def told(capsys) -> str:
    """What was printed, without the lines of the table."""
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_the_table_counts_what_is_there(tmp_path, capsys):
    as_folder(tmp_path, MADE, "txt")
    found = looked("folder", path=str(tmp_path), resize="stretch", test_share=0.0)
    printed = told(capsys)
    assert found.sizes == {(16, 16): 30}
    for row in ("training images 30", "width as kept 16", "different captions 30", "none found"):
        assert row in printed
    assert "tokens of a caption" in printed


def test_problems_are_found_and_named_without_stopping(tmp_path, capsys):
    as_folder(tmp_path, MADE, "txt")
    (tmp_path / "00003.png").write_bytes(b"broken")
    (tmp_path / "00004.txt").unlink()
    (tmp_path / "00006.png").write_bytes(MADE[5][0])
    Image.new("RGB", (4, 4), "red").save(tmp_path / "00007.png")
    long = " ".join(["word"] * 70)
    (tmp_path / "00008.txt").write_text(long)
    looked("folder", path=str(tmp_path), resize="stretch", test_share=0.0)
    printed = told(capsys)
    assert "3 images can't be used, 10.0%" in printed
    assert "00003.png: no image that Pillow knows" in printed
    assert "00004.png: it has no caption" in printed
    assert "training would stop" in printed
    assert "1 images look exactly like another one" in printed
    assert "1 images are of a single colour" in printed
    assert "1 images are smaller than 8 pixels" in printed
    assert "00008.png: its caption makes 70 tokens and the text encoder takes 64" in printed


@pytest.mark.parametrize("kind", ["classes", "shards", "digits", "colored-digits"])
def test_every_kind_of_source_gives_a_sheet(tmp_path, capsys, kind):
    sheet = tmp_path / "out" / "sheet.png"
    if kind == "classes":
        folder = as_classes(tmp_path / "a", MADE, ["owl", "fox"])
        found = looked("folder", sheet, path=str(folder), test_share=0.0)
        assert found.classes == {"owl": 15, "fox": 15}
        assert "a photo of a" in Image.open(sheet).text["captions"]
    elif kind == "shards":
        pytest.importorskip("webdataset")
        looked("webdataset", sheet, path=as_shards(tmp_path / "a", MADE, 3))
    else:
        found = looked(kind, sheet)
        assert sum(found.classes.values()) == found.good > 1000
    with Image.open(sheet) as picture:
        assert picture.width > 400
    printed = capsys.readouterr().out
    assert ("a stream of 3 shards" in printed) == (kind == "shards")
    assert f"sheet  {sheet}" in printed.replace("\n", "")


def test_from_the_command_line(toy_file, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["data", str(toy_file), "--out", str(tmp_path / "sheet.png")])
    assert not ended.value.code
    assert (tmp_path / "sheet.png").is_file()
    with pytest.raises(SystemExit) as ended:
        main(["data", str(toy_file), "data.source=folder", "data.path=nowhere"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_without_one_good_image_is_a_line(tmp_path):
    (tmp_path / "0.png").write_bytes(b"")
    (tmp_path / "0.txt").write_text("x")
    with pytest.raises(UserError, match=r"no image can be used; 0\.png: no image that Pillow"):
        looked("folder", path=str(tmp_path), test_share=0.0)


def test_ten_faults_are_ten_lines(tmp_path, capsys):
    as_folder(tmp_path, MADE, "none")
    rows = [f"{i:05d}.png,a boat {i}" for i in range(len(MADE))]
    rows[2] = "00002.png,a boat, a sea"  # one field too many
    rows[3] = ",a boat without a name"
    rows[4] = "00004.png,"
    rows[5] = "lost.png,a boat that is not there"  # and 00005.png has no row
    rows[6] = '00006.png,"a quote" that ends too soon'
    rows[7] = f"00007.png,{'so ' * 99}"
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + "\n".join(rows) + "\n")
    (tmp_path / "00008.png").write_bytes(b"broken")
    (tmp_path / "00009.png").write_bytes(MADE[9][0][:80])
    (tmp_path / "film.mp4").touch()
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    looked("folder", path=str(tmp_path), resize="stretch")
    printed = told(capsys)
    for line in (
        "line 4 (00002.png): it has 3 fields and the header has 2",
        "line 5: it has no file_name",
        "00004.png: it has no caption",
        "lost.png: there is no such file",
        "line 8: ',' expected",
        "00007.png: its caption makes 99 tokens",
        "00008.png: no image that Pillow knows",
        "00009.png: image file is truncated",
        "(ending .mp4, which is no image's): film.mp4",
        "(broken link): gone.png",
        "(no row in metadata.csv): 00003.png, 00005.png, 00006.png",
    ):
        assert line in printed, (line, printed)


def test_every_image_is_looked_at_and_every_bad_one_named(tmp_path, capsys):
    """However many there are."""
    as_folder(tmp_path, MADE[:1], "none")
    for i in range(2500):
        (tmp_path / f"x{i}.png").write_bytes(MADE[0][0] if i % 25 else b"broken")
    found = looked("folder", path=str(tmp_path), resize="stretch", caption="a boat", test_share=0.0)
    assert (found.good, len(found.looks)) == (2401, 1)
    printed = told(capsys)
    assert printed.count(": no image that Pillow knows") == 100
    assert "100 images can't be used, 4.0%, more than data.max_bad=0.01: training would" in printed


def test_a_test_image_that_is_trained_on_too_is_said(tmp_path, capsys):
    for split, made in (("train", MADE), ("test", MADE[3:5])):
        as_folder(tmp_path / split, made, "txt")
    looked("folder", path=str(tmp_path), resize="stretch")
    assert "2 test images look exactly like one that is trained on" in told(capsys)


def test_a_stream_by_url_is_looked_at_in_part_and_that_is_said(tmp_path, capsys, monkeypatch):
    pytest.importorskip("webdataset")
    monkeypatch.setattr("fluxsmith.cli.dataset_sheet.REMOTE", 5)
    as_shards(tmp_path, MADE, 1)
    local = looked("webdataset", path=str(tmp_path), test_share=0.0)
    assert local.good == len(MADE)
    assert "by URL" not in told(capsys)
    found = looked("webdataset", path=f"file://{tmp_path}/000.tar", test_share=0.0)
    assert found.good == 5
    assert "5, the first of a stream that is read by URL" in told(capsys)


def test_names_that_look_like_markup_are_shown_as_they_are(tmp_path, capsys):
    as_classes(tmp_path, MADE, ["[red]", "[INST]"])
    (tmp_path / "[red]" / "bad[b].png").write_bytes(b"no picture")
    looked("folder", path=str(tmp_path))
    printed = capsys.readouterr().out
    assert "'[red]'" in printed
    assert "[red]/bad[b].png: no image" in printed
