"""A batch is a pure function of its step, and an epoch holds every image exactly once."""

import math
from collections import Counter

import pytest
import torch

from fluxsmith.data.imageset import ImageSet
from fluxsmith.data.loader import Batch, MemoryLoader

N = 10


def numbered(n: int = N) -> ImageSet:
    """Image i is filled with the level i, but for a white left edge, and called by its number."""
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).repeat(1, 1, 4, 4)
    images[..., 0] = 255
    return ImageSet(images, torch.arange(n), [(str(i), f"number {i}") for i in range(n)])


def seen(batch: Batch, column: int = 2) -> list[int]:
    """The numbers of the images in a batch."""
    return ((batch.images[:, 0, 0, column] + 1) * 127.5).round().int().tolist()


def equal(one: Batch, other: Batch) -> bool:
    return torch.equal(one.images, other.images) and one.captions == other.captions


@pytest.mark.parametrize("batch_size", [1, 3, 5, 7, 10, 16, 25])
def test_every_image_comes_exactly_once_an_epoch(batch_size):
    loader = MemoryLoader(numbered(), batch_size, seed=0)
    epochs = 5
    steps = math.ceil(epochs * N / batch_size)
    stream = [image for step in range(steps) for image in seen(loader.batch(step))]
    for epoch in range(epochs):
        assert sorted(stream[epoch * N : (epoch + 1) * N]) == list(range(N))


def test_captions_belong_to_their_images():
    loader = MemoryLoader(numbered(), 4, seed=0)
    for step in range(10):
        batch = loader.batch(step)
        for image, caption in zip(seen(batch), batch.captions, strict=True):
            assert caption in (str(image), f"number {image}")


def test_images_are_floats_in_the_unit_range():
    batch = MemoryLoader(numbered(), 4, seed=0).batch(0)
    assert batch.images.shape == (4, 1, 4, 4)
    assert batch.images.dtype == torch.float32
    assert batch.images[..., 0].unique().tolist() == [1.0]
    assert batch.images.min() >= -1


def test_a_batch_depends_on_nothing_but_its_step():
    options = {"caption_dropout": 0.3, "flip": True}
    in_order = MemoryLoader(numbered(), 3, seed=1, **options)
    jumping = MemoryLoader(numbered(), 3, seed=1, **options)
    batches = {step: jumping.batch(step) for step in (11, 0, 7, 3, 11, 2)}
    torch.manual_seed(5)  # a global stream has no say in it
    for step in range(12):
        batch = in_order.batch(step)
        assert step not in batches or equal(batch, batches[step])


def test_epochs_and_seeds_have_orders_of_their_own():
    loader, other = MemoryLoader(numbered(), N, seed=0), MemoryLoader(numbered(), N, seed=1)
    orders = {tuple(seen(loader.batch(epoch))) for epoch in range(4)}
    orders |= {tuple(seen(other.batch(epoch))) for epoch in range(4)}
    assert len(orders) == 8


def test_an_image_is_described_anew_in_another_epoch():
    loader = MemoryLoader(numbered(), N, seed=0)
    epochs = [loader.batch(epoch) for epoch in range(4)]
    described = {tuple(sorted(batch.captions)) for batch in epochs}
    assert len(described) == 4


def test_dropout_empties_captions_at_its_rate():
    loader = MemoryLoader(numbered(200), 200, seed=0, caption_dropout=0.25)
    captions = Counter(text for step in range(20) for text in loader.batch(step).captions)
    n, p = 4000, 0.25
    assert abs(captions[""] - n * p) <= 5 * math.sqrt(n * p * (1 - p))


def test_a_mirrored_image_has_its_left_edge_on_the_right():
    loader = MemoryLoader(numbered(200), 200, seed=0, flip=True)
    plain = MemoryLoader(numbered(200), 200, seed=0)
    mirrored = 0
    for step in range(20):
        batch, straight = loader.batch(step), plain.batch(step)
        right = batch.images[..., -1].eq(1).all(-1).squeeze(1)  # (b,)
        mirrored += int(right.sum())
        assert torch.equal(batch.images[right], straight.images[right].flip(-1))
        assert torch.equal(batch.images[~right], straight.images[~right])
    n = 4000
    assert abs(mirrored - n / 2) <= 5 * math.sqrt(n / 4)


def test_nothing_is_mirrored_unless_asked_for():
    loader = MemoryLoader(numbered(200), 200, seed=0)
    assert (loader.batch(0).images[..., 0] == 1).all()


def test_the_position_counts_the_images_of_the_epoch_already_seen():
    loader = MemoryLoader(numbered(), 4, seed=0)
    assert loader.position(0) == {"epoch": 0, "offset": 0, "images": N}
    assert loader.position(2) == {"epoch": 0, "offset": 8, "images": N}
    assert loader.position(3) == {"epoch": 1, "offset": 2, "images": N}
    assert loader.position(5) == {"epoch": 2, "offset": 0, "images": N}


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_a_batch_splits_into_equal_pieces_in_order(parts):
    batch = MemoryLoader(numbered(), 6, seed=0).batch(0)
    pieces = batch.split(parts)
    assert [len(piece) for piece in pieces] == [6 // parts] * parts
    assert torch.equal(torch.cat([piece.images for piece in pieces]), batch.images)
    assert [text for piece in pieces for text in piece.captions] == batch.captions


def test_images_and_labels_come_in_pairs():
    with pytest.raises(ValueError, match="3 images but 2 labels"):
        ImageSet(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(2).long(), [("a",)])
