"""Pictures in pairs: what an edit begins with stays with what it becomes, from any source."""

import json
import sys
import tarfile
import weakref

import pytest
import torch
from helpers import data_settings
from made_pictures import add, items

from fluxsmith.data import build_loader, load
from fluxsmith.data.colored_digits import COLORS
from fluxsmith.data.images import to_uint8
from fluxsmith.data.loader import MemoryLoader
from fluxsmith.data.sources import open_source
from fluxsmith.errors import UserError
from fluxsmith.evaluation.evaluators.composition import colors

AFTER, BEFORE = items(24, size=8)[:12], items(24, size=8)[12:]
SHOWN = {"image_size": 8, "channels": 3, "resize": "stretch", "reference_key": "before"}


def as_folder(folder, rows=None):
    folder.mkdir()
    for i, ((png, _), (source, _)) in enumerate(zip(AFTER, BEFORE, strict=True)):
        (folder / f"{i}.png").write_bytes(png)
        (folder / f"source{i}.png").write_bytes(source)
    rows = rows or [
        {"file_name": f"{i}.png", "before": f"source{i}.png", "text": text}
        for i, (_, text) in enumerate(AFTER)
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data_settings("folder", folder, test_share=0.0, **SHOWN)


def as_hf(folder):
    datasets = pytest.importorskip("datasets")
    columns = {
        "edited_image": [{"bytes": png, "path": None} for png, _ in AFTER],
        "before": [{"bytes": png, "path": None} for png, _ in BEFORE],
        "text": [text for _, text in AFTER],
    }
    kinds = {key: datasets.Image() for key in ("edited_image", "before")}
    features = datasets.Features({**kinds, "text": datasets.Value("string")})
    folder.mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "train.parquet")
    path = folder / "train.parquet"
    return data_settings("hf", path, test_share=0.0, image_key="edited_image", **SHOWN)


def as_shards(folder):
    pytest.importorskip("webdataset")
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for i, ((png, text), (source, _)) in enumerate(zip(AFTER, BEFORE, strict=True)):
            add(tar, f"{i}.before.png", source)
            add(tar, f"{i}.png", png)
            add(tar, f"{i}.txt", text.encode())
    shown = SHOWN | {"reference_key": "before.png"}
    return data_settings("webdataset", folder, test_share=0.0, shuffle_buffer=12, **shown)


KINDS = {"folder": as_folder, "hf": as_hf, "webdataset": as_shards}


def pixels(png):
    from fluxsmith.data.pictures import decode

    return decode(png, 8, 3, "stretch", 0.5)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_stays_with_its_picture(tmp_path, kind, flip):
    """In memory, decoded on the way and streamed, mirrored with it or not at all."""
    settings = KINDS[kind](tmp_path / "data").model_copy(update={"flip": flip})
    loaders = [build_loader(settings, 12, 0)]
    if kind != "webdataset":
        loaders.append(build_loader(settings.model_copy(update={"in_memory": False}), 12, 0))
    for batch in (loader.batch(0) for loader in loaders):
        mirrored = 0
        for image, reference, text in zip(
            to_uint8(batch.images), to_uint8(batch.references), batch.captions, strict=True
        ):
            number = int(text.split()[-1])
            after, before = pixels(AFTER[number][0]), pixels(BEFORE[number][0])
            if not torch.equal(image, after):
                after, before, mirrored = after.flip(-1), before.flip(-1), mirrored + 1
            assert torch.equal(image, after)
            assert torch.equal(reference, before)
        assert (0 < mirrored < 12) if flip else not mirrored
    parts = loaders[0].batch(0).split(3)
    assert torch.equal(
        torch.cat([part.references for part in parts]), loaders[0].batch(0).references
    )


def test_a_set_in_memory_has_the_references_apart(tmp_path):
    data = load(as_folder(tmp_path / "data"), "train")
    assert data.images.shape == data.references.shape == (12, 3, 8, 8)


@pytest.mark.parametrize(
    ("row", "named"),
    [({"before": "nowhere.png"}, "its before, 'nowhere.png'"), ({}, "its before, None")],
)
def test_a_picture_without_its_reference_can_not_be_used(tmp_path, row, named):
    first = {"file_name": "0.png", "before": "source0.png", "text": "a"}
    settings = as_folder(tmp_path / "data", [first, {"file_name": "1.png", "text": "b", **row}])
    with pytest.raises(UserError, match=named):
        load(settings, "train")


def test_a_column_that_is_not_there_is_named(tmp_path):
    settings = as_folder(tmp_path / "data").model_copy(update={"reference_key": "source"})
    with pytest.raises(UserError, match=r"reference_key=source: .* has the columns file_name"):
        load(settings, "train")


@pytest.mark.parametrize("kind", KINDS)
def test_another_reference_makes_other_data(tmp_path, kind, monkeypatch):
    first = open_source(KINDS[kind](tmp_path / "data"), "train").digest()
    assert open_source(KINDS[kind](tmp_path / "same"), "train").digest() == first
    monkeypatch.setattr(sys.modules[__name__], "BEFORE", [*BEFORE[:5], BEFORE[6], *BEFORE[6:]])
    assert open_source(KINDS[kind](tmp_path / "other"), "train").digest() != first


def test_recolored_digits_differ_in_their_ink_alone():
    shown = {"image_size": 10, "channels": 3, "resize": "stretch"}
    data = load(data_settings("colored-digits", edits=True, **shown), "train")
    plain = load(data_settings("colored-digits", **shown), "train")
    assert torch.equal(data.images, plain.images)
    assert (data.images != data.references).flatten(1).any(1).all()
    corner = [each[:, :, 0, 0] for each in (data.images, data.references)]
    assert torch.equal(*corner)  # the paper stays
    ways = [data.captions[label] for label in data.labels.tolist()]
    asked = torch.tensor([COLORS.index(first.split()[-1]) for first, *_ in ways])
    (after, _), (before, _) = colors(data.images), colors(data.references)
    assert (after == asked).float().mean() > 0.99  # faint strokes look like others
    assert (before == asked).float().mean() < 0.01


def test_pairs_in_memory_are_held_once(tmp_path):
    settings = as_folder(tmp_path / "pairs")
    pairs = load(settings, "train")
    loader = MemoryLoader([pairs], 4, 0, settings)
    apart = [weakref.ref(each) for each in (pairs.images, pairs.references)]
    del pairs
    assert [each() for each in apart] == [None, None]
    assert loader.images[0].shape == (12, 6, 8, 8)
