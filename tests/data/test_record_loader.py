"""Images decoded on the way are the batches that memory would give, whatever the workers."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from made_pictures import as_folder, items

from fluxsmith.data import DataSettings, build_loader
from fluxsmith.data.loader import MemoryLoader
from fluxsmith.data.record_loader import RecordLoader
from fluxsmith.errors import UserError

MADE = items(30)


@pytest.fixture
def settings(tmp_path) -> DataSettings:
    as_folder(tmp_path, MADE, "txt")
    return DataSettings(
        "folder", str(tmp_path), image_size=8, channels=3, resize="stretch", flip=True,
        caption_dropout=0.3, in_memory=False, options={"test_share": 0.0},
    )  # fmt: skip


def equal(one, other) -> bool:
    return torch.equal(one.images, other.images) and one.captions == other.captions


def test_batches_are_those_from_memory_to_the_bit(settings):
    lazy = build_loader(settings, 7, seed=3)
    memory = build_loader(replace(settings, in_memory=True), 7, seed=3)
    assert isinstance(lazy, RecordLoader)
    assert isinstance(memory, MemoryLoader)
    for step in range(12):
        assert equal(lazy.batch(step), memory.batch(step)), step
    assert lazy.position(12) == memory.position(12)
    assert lazy.captions() == memory.captions()


def test_a_batch_depends_on_nothing_but_its_step(settings):
    cropped = replace(settings, resize="random-crop", workers=3)
    in_order, jumping = build_loader(cropped, 7, seed=1), build_loader(cropped, 7, seed=1)
    batches = {step: jumping.batch(step) for step in (11, 0, 7, 3, 4, 11)}
    for step in range(12):
        batch = in_order.batch(step)
        assert step not in batches or equal(batch, batches[step])


def test_random_crops_are_drawn_anew_each_epoch(tmp_path):
    wide = items(1, size=40)
    as_folder(tmp_path, wide, "txt")
    from PIL import Image

    with Image.open(tmp_path / "00000.png") as picture:
        picture.crop((0, 0, 40, 8)).save(tmp_path / "00000.png")
    settings = DataSettings(
        "folder", str(tmp_path), image_size=8, channels=3, resize="random-crop",
        options={"test_share": 0.0},
    )  # fmt: skip
    loader = build_loader(settings, 1, seed=0)
    assert isinstance(loader, RecordLoader)  # which memory could not do
    cuts = {loader.batch(epoch).images.numpy().tobytes() for epoch in range(20)}
    assert len(cuts) > 10


def test_a_bad_image_is_replaced_named_once_and_counted(settings, tmp_path, caplog):
    (tmp_path / "00005.png").write_bytes(b"broken")
    loader = build_loader(replace(settings, max_bad=0.1, caption_dropout=0.0), 10, seed=0)
    captions = Counter(text for step in range(9) for text in loader.batch(step).captions)
    assert sum(captions.values()) == 90
    assert "picture number 5" not in captions
    assert len(caplog.records) == 1
    assert "00005.png" in caplog.text
    again = build_loader(replace(settings, max_bad=0.1, caption_dropout=0.0), 10, seed=0)
    assert equal(again.batch(4), loader.batch(4))  # by an address, so the same one each time


def test_too_many_bad_images_stop_with_a_line(settings, tmp_path):
    for i in range(3):
        (tmp_path / f"0000{i}.png").write_bytes(b"broken")
    loader = build_loader(replace(settings, max_bad=0.05), 10, seed=0)
    with pytest.raises(UserError, match=r"2 of 30 images can't be used, more than data\.max_bad"):
        for step in range(3):
            loader.batch(step)


def test_nothing_but_bad_images_stop_with_a_line_whatever_is_allowed(settings, tmp_path):
    for i in range(30):
        (tmp_path / f"{i:05d}.png").write_bytes(b"broken")
    loader = build_loader(replace(settings, max_bad=1.0), 10, seed=0)
    with pytest.raises(UserError, match="no image that can be used"):
        loader.batch(0)


def test_other_images_are_refused_on_resuming(settings):
    loader = build_loader(settings, 7, seed=0)
    loader.resume(loader.position(5), 5, "x.pt")
    with pytest.raises(UserError, match=r"x\.pt was trained on 29 images, and there are 30"):
        loader.resume({"images": 29}, 5, "x.pt")
    with pytest.raises(UserError, match="was trained on a stream"):
        loader.resume({"epoch": 0, "shards": 3}, 5, "x.pt")
