"""A batch is a pure function of its step, and an epoch holds every image exactly once, whether the
images are in memory or decoded on the way."""

import math
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import data_settings
from made_pictures import as_folder, as_shards, items
from PIL import Image

from fluxsmith.config.data_section import DataConfig
from fluxsmith.data import build_loader
from fluxsmith.data.imageset import ImageSet
from fluxsmith.data.loader import Batch, MemoryLoader, RecordLoader
from fluxsmith.errors import UserError

N = 10


def numbered(n: int = N) -> ImageSet:
    """Image i is filled with the level i, but for a white left edge, and called by its number."""
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).repeat(1, 1, 4, 4)
    images[..., 0] = 255
    return ImageSet(images, torch.arange(n), [(str(i), f"number {i}") for i in range(n)])


def seen(batch: Batch) -> list[int]:
    """The numbers of the images in a batch."""
    return ((batch.images[:, 0, 0, 2] + 1) * 127.5).round().int().tolist()


def memory_loader(data: ImageSet, batch_size: int, seed: int, **settings) -> MemoryLoader:
    given = {"caption_dropout": 0.0} | settings
    return MemoryLoader([data], batch_size, seed, data_settings("digits", **given))


def equal(one: Batch, other: Batch) -> bool:
    return torch.equal(one.images, other.images) and one.captions == other.captions


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10, 16, 25])
def test_every_image_comes_exactly_once_an_epoch_with_a_caption_of_its_own(batch_size):
    loader = memory_loader(numbered(), batch_size, seed=0)
    epochs, stream = 5, []
    for step in range(math.ceil(epochs * N / batch_size)):
        batch = loader.batch(step)
        assert batch.images.shape == (batch_size, 1, 4, 4)
        assert batch.images.dtype == torch.float32
        assert batch.images[..., 0].unique().tolist() == [1.0]
        stream += seen(batch)
        for image, caption in zip(seen(batch), batch.captions, strict=True):
            assert caption in (str(image), f"number {image}")
    for epoch in range(epochs):
        assert sorted(stream[epoch * N : (epoch + 1) * N]) == list(range(N))


def test_a_batch_depends_on_nothing_but_its_step(settings):
    def loaders():
        yield memory_loader(numbered(), 3, seed=1, caption_dropout=0.3, flip=True)
        cropped = settings.model_copy(update={"resize": "random-crop", "workers": 3})
        yield build_loader(cropped, 7, seed=1)

    for in_order, jumping in zip(loaders(), loaders(), strict=True):
        batches = {step: jumping.batch(step) for step in (11, 0, 7, 3, 4, 11, 2)}
        torch.manual_seed(5)  # a global stream has no say in it
        for step in range(12):
            batch = in_order.batch(step)
            assert step not in batches or equal(batch, batches[step])


def test_epochs_and_seeds_have_orders_and_captions_of_their_own():
    loader, other = memory_loader(numbered(), N, seed=0), memory_loader(numbered(), N, seed=1)
    batches = [one.batch(epoch) for one in (loader, other) for epoch in range(4)]
    assert len({tuple(seen(batch)) for batch in batches}) == 8
    assert len({tuple(sorted(batch.captions)) for batch in batches[:4]}) == 4


def test_captions_are_dropped_and_images_mirrored_at_their_rates():
    plain = memory_loader(numbered(200), 200, seed=0)
    loader = memory_loader(numbered(200), 200, seed=0, caption_dropout=0.25, flip=True)
    dropped = mirrored = 0
    n = 4000
    for step in range(n // 200):
        batch, straight = loader.batch(step), plain.batch(step)
        assert (straight.images[..., 0] == 1).all()
        right = batch.images[..., -1].eq(1).all(-1).squeeze(1)  # (b,)
        mirrored += int(right.sum())
        dropped += batch.captions.count("")
        assert torch.equal(batch.images[right], straight.images[right].flip(-1))
        assert torch.equal(batch.images[~right], straight.images[~right])
    assert abs(mirrored - n / 2) <= 5 * math.sqrt(n / 4)
    assert abs(dropped - n / 4) <= 5 * math.sqrt(n * 3 / 16)


def test_the_position_counts_the_images_of_the_epoch_already_seen():
    loader = memory_loader(numbered(), 4, seed=0)
    stood = {0: (0, 0), 2: (0, 8), 3: (1, 2), 5: (2, 0)}
    for step, (epoch, offset) in stood.items():
        assert loader.position(step) == {"epoch": epoch, "offset": offset, "images": N}


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_a_batch_splits_into_equal_pieces_in_order(parts):
    batch = memory_loader(numbered(), 6, seed=0).batch(0)
    pieces = batch.split(parts)
    assert [len(piece) for piece in pieces] == [6 // parts] * parts
    assert torch.equal(torch.cat([piece.images for piece in pieces]), batch.images)
    assert [text for piece in pieces for text in piece.captions] == batch.captions


@pytest.fixture
def settings(tmp_path) -> DataConfig:
    as_folder(tmp_path, items(30), "txt")
    return data_settings(
        "folder", str(tmp_path), image_size=8, channels=3, resize="stretch", flip=True,
        caption_dropout=0.3, in_memory=False, test_share=0.0,
    )  # fmt: skip


def test_batches_decoded_on_the_way_are_those_from_memory_to_the_bit(settings):
    lazy = build_loader(settings, 7, seed=3)
    memory = build_loader(settings.model_copy(update={"in_memory": True}), 7, seed=3)
    assert isinstance(lazy, RecordLoader)
    assert isinstance(memory, MemoryLoader)
    for step in range(12):
        assert equal(lazy.batch(step), memory.batch(step)), step
    assert lazy.position(12) == memory.position(12)
    assert lazy.captions() == memory.captions()


def test_random_crops_are_drawn_anew_each_epoch(settings, tmp_path):
    one = tmp_path / "one"
    as_folder(one, items(1, size=40), "txt")
    with Image.open(one / "00000.png") as picture:
        picture.crop((0, 0, 40, 8)).save(one / "00000.png")
    changed = {"path": str(one), "resize": "random-crop", "in_memory": "auto", "flip": False}
    loader = build_loader(settings.model_copy(update=changed), 1, seed=0)
    assert isinstance(loader, RecordLoader)  # which memory could not do
    cuts = {loader.batch(epoch).images.numpy().tobytes() for epoch in range(20)}
    assert len(cuts) > 10


def test_a_bad_image_is_replaced_named_once_and_counted(settings, tmp_path, caplog):
    (tmp_path / "00005.png").write_bytes(b"broken")
    lenient = settings.model_copy(update={"max_bad": 0.1, "caption_dropout": 0.0})
    loader = build_loader(lenient, 10, seed=0)
    captions = Counter(text for step in range(9) for text in loader.batch(step).captions)
    assert sum(captions.values()) == 90
    assert "picture number 5" not in captions
    assert len(caplog.records) == 1
    assert "00005.png" in caplog.text
    again = build_loader(lenient, 10, seed=0)
    assert equal(again.batch(4), loader.batch(4))  # by an address, so the same one each time


@pytest.mark.parametrize(
    ("bad", "allowed", "said"),
    [
        (3, 0.05, r"2 of 30 images can't be used, more than data\.max_bad"),
        (30, 1.0, "no image that can be used"),
    ],
)
def test_too_many_bad_images_stop_with_a_line(settings, tmp_path, bad, allowed, said):
    for i in range(bad):
        (tmp_path / f"{i:05d}.png").write_bytes(b"broken")
    loader = build_loader(settings.model_copy(update={"max_bad": allowed}), 10, seed=0)
    with pytest.raises(UserError, match=said):
        for step in range(3):
            loader.batch(step)


def test_other_images_are_refused_on_resuming(settings):
    loader = build_loader(settings, 7, seed=0)
    loader.resume(loader.position(5), 5, "x.pt")
    with pytest.raises(UserError, match=r"x\.pt was trained on 29 images, and there are 30"):
        loader.resume({"images": 29}, 5, "x.pt")
    with pytest.raises(UserError, match="was trained on a stream"):
        loader.resume({"epoch": 0, "shards": 3}, 5, "x.pt")


def test_the_next_batches_are_decoded_while_a_step_computes(settings):
    loader = build_loader(settings, 5, seed=0)
    whole, read = loader.decode, []

    def noted(record, *rest):
        read.append(record.name)
        return whole(record, *rest)

    loader.decode = noted
    loader.batch(0)
    for _ in range(1000):  # of a step that takes its time
        if len(read) == 15:
            break
        time.sleep(0.01)
    assert len(read) == 15  # this batch and the next two


class OneByOne:
    """A decoder that is as slow as the test: it decodes as many pictures as it was allowed to."""

    def __init__(self, decode) -> None:
        self._decode, self._allowed, self._done = (
            decode,
            threading.Semaphore(0),
            threading.Semaphore(0),
        )

    def __call__(self, *record):
        assert self._allowed.acquire(timeout=60)
        found = self._decode(*record)
        self._done.release()
        return found

    def decode(self, pictures: int) -> None:
        for _ in range(pictures):
            self._allowed.release()
            assert self._done.acquire(timeout=60)


@pytest.mark.parametrize("source", ["folder", "webdataset"])
def test_a_loader_starves_no_step_that_takes_as_long_as_decoding_a_batch(tmp_path, source):
    """Of the pictures of a batch, none is left to decode when the batch is asked for, though no
    more than one batch is decoded in each step before it."""
    if source == "folder":
        path = as_folder(tmp_path / "set", items(30), "txt")
    else:
        pytest.importorskip("webdataset")
        path = as_shards(tmp_path / "set", items(30), 3)
    shown = {"image_size": 8, "channels": 3, "resize": "stretch", "workers": 1, "test_share": 0.0}
    options = {"in_memory": False} if source == "folder" else {"shuffle_buffer": 8}
    loader = build_loader(data_settings(source, str(path), **shown, **options), 5, seed=0)
    loader.decode = slow = OneByOne(loader.decode)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(loader.batch, 0)
        slow.decode(5)
        first.result(timeout=60)
        for step in range(1, 14):  # over the ends of epochs
            slow.decode(5)  # while the step before computes
            batch = pool.submit(loader.batch, step).result(timeout=60)  # nothing is decoded now
            assert len(batch) == 5
        slow.decode(10)  # what was begun ahead
