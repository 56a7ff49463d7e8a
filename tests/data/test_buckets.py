"""Each picture in the shape nearest to its own, each once an epoch, in batches of one shape."""

from collections import Counter

import numpy as np
import pytest
import torch
from helpers import data_settings
from hypothesis import given
from hypothesis import strategies as st
from made_pictures import as_folder, as_shards, of_sizes
from PIL import Image

from fluxsmith.data import build_loader, load
from fluxsmith.data.buckets import arrange, crop_share, nearest, shapes_of
from fluxsmith.data.images import to_uint8
from fluxsmith.data.loader import BucketOrder, MemoryLoader, RecordLoader
from fluxsmith.data.pictures import picture_size
from fluxsmith.errors import UserError

AUTO = {"image_size": 32, "channels": 3, "resize": "center-crop", "buckets": "auto"}
AUTO |= {"bucket_step": 4, "test_share": 0.0}
# (width, height) of 37 pictures: many squares and few of three other shapes
SIZES = [(40, 40)] * 17 + [(60, 40)] * 11 + [(40, 64)] * 8 + [(99, 41)]


def settings(folder, source="folder", **changes):
    return data_settings(source, str(folder), **{**AUTO, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return as_folder(tmp_path_factory.mktemp("shapes"), of_sizes(SIZES), "txt")


def numbers(batch) -> list[int]:
    return [int(caption.removeprefix("picture number ")) for caption in batch.captions]


@pytest.mark.parametrize(("size", "step"), [(32, 8), (256, 32), (512, 64), (1024, 64)])
def test_shapes_have_the_square_s_area_or_little_less_and_sides_within_limits(size, step):
    shapes = shapes_of(settings("x", image_size=size, bucket_step=step))
    assert shapes[0] == (size, size)
    assert set(shapes) == {(width, height) for height, width in shapes}  # lying and standing
    for height, width in shapes:
        assert height % step == width % step == 0
        assert max(height, width) <= 2.5 * min(height, width)
        assert size**2 - step * min(height, width) < height * width <= size**2
    assert shapes_of(settings("x", buckets="off", bucket_step=64, image_size=size)) == [
        (size, size)
    ]


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_nearest_shape_cuts_the_least(width, height):
    shapes = shapes_of(settings("x", image_size=512, bucket_step=64))
    cuts = [crop_share((width, height), shape) for shape in shapes]
    assert cuts[nearest((width, height), shapes)] == min(cuts)
    assert all(0 <= cut < 1 for cut in cuts)
    assert crop_share((3 * width, 3 * height), (height, width)) == 0


def epochs_of(order: BucketOrder, epochs: int) -> Counter:
    """How often each (bucket, permutation, place in it) comes in so many epochs."""
    found: Counter = Counter()
    for step in range(order.batches(epochs)):
        bucket, rows = order.places(step)
        found.update((bucket, *row) for row in rows)
    return found


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_each_image_comes_once_an_epoch_on_any_number_of_ranks(ranks, counts, seed):
    batch_size, epochs = 8, 3
    order = BucketOrder(counts, batch_size, seed)
    seen: Counter = Counter()
    tokens = Counter()
    for step in range(order.batches(epochs)):
        bucket, rows = order.places(step)
        assert len(rows) == batch_size
        part = batch_size // ranks
        for rank in range(ranks):  # each rank takes its equal part
            own = rows[rank * part : (rank + 1) * part]
            seen.update((bucket, *row) for row in own)
            tokens[rank] += len(own) * (bucket + 1)
    assert max(seen.values()) == 1  # a place in a permutation comes once,
    for bucket, n in enumerate(counts):  # all of the first epochs' permutations have come,
        assert all((bucket, e, at) in seen for e in range(epochs) for at in range(n))
        early = sum(key[0] == bucket for key in seen) - epochs * n
        assert 0 <= early < batch_size  # and of the next only what fills a batch up
    assert len(set(tokens.values())) == 1  # ranks have the same work, to the token


def test_buckets_are_mixed_within_an_epoch_and_without_them_steps_are_in_order():
    order = BucketOrder([40, 40], 4, seed=0)
    buckets = [order.places(step)[0] for step in range(20)]
    assert Counter(buckets) == {0: 10, 1: 10}
    assert buckets != sorted(buckets)
    alone = BucketOrder([10], 4, seed=0)
    rows = [row for step in range(10) for row in alone.places(step)[1]]
    assert rows == [divmod(i, 10) for i in range(40)]


@given(st.lists(st.tuples(st.integers(8, 90), st.integers(8, 90)), min_size=24, max_size=24))
def test_a_window_is_arranged_without_loss(sizes):
    shapes = shapes_of(settings("x"))
    batches = arrange(sizes, shapes, 4)
    assert all(len(images) == 4 for _, images in batches)
    assert sorted(i for _, images in batches for i in images) == list(range(24))
    own = Counter(nearest(size, shapes) for size in sizes)
    at_home = Counter(b for b, images in batches for i in images if nearest(sizes[i], shapes) == b)
    assert all(at_home[bucket] >= n // 4 * 4 for bucket, n in own.items())


def test_pictures_are_whole_where_a_bucket_has_their_shape(tmp_path):
    made = of_sizes([(40, 24), (24, 40), (32, 32)])
    loader = build_loader(settings(as_folder(tmp_path, made, "txt")), 1, seed=0)
    for step in range(3):
        batch = loader.batch(step)
        with Image.open(tmp_path / f"{numbers(batch)[0]:05d}.png") as picture:
            expected = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        assert torch.equal(to_uint8(batch.images[0]), expected)


def test_in_memory_and_on_the_way_batches_are_equal_and_of_one_shape(folder):
    memory = build_loader(settings(folder, flip=True, caption_dropout=0.2), 4, seed=3)
    lazy = build_loader(settings(folder, flip=True, caption_dropout=0.2, in_memory=False), 4, 3)
    assert isinstance(memory, MemoryLoader)
    assert isinstance(lazy, RecordLoader)
    jumping = build_loader(settings(folder, flip=True, caption_dropout=0.2, in_memory=False), 4, 3)
    shapes = set()
    for step in range(24):
        one, other = memory.batch(step), lazy.batch(step)
        assert torch.equal(one.images, other.images)
        assert one.captions == other.captions
        shapes.add(one.images.shape[-2:])
    assert torch.equal(jumping.batch(23).images, one.images)
    assert len(shapes) == 4
    assert memory.position(24) == lazy.position(24)
    lazy.resume(memory.position(24), 24, "x.pt")
    other = {**memory.position(24), "buckets": {"32x32": 37}}
    with pytest.raises(UserError, match=r"x\.pt was trained on images of other shapes"):
        lazy.resume(other, 24, "x.pt")


def test_every_image_of_a_folder_comes_in_the_first_epoch(folder, caplog):
    loader = build_loader(settings(folder), 4, seed=0)
    drawn = Counter(i for step in range(11) for i in numbers(loader.batch(step)))
    # 17, 11, 8 and 1 images fill 5, 3, 2 and 1 batches
    assert drawn.keys() == set(range(37))
    assert drawn.total() == 44
    assert drawn[36] == 4  # alone in its bucket
    assert "37 images in 4 buckets, 7 of which come again" in loader.describe()
    assert "data.buckets cuts 3.9% of a picture on average" in caplog.text


@pytest.fixture
def shards(tmp_path):
    pytest.importorskip("webdataset")
    return as_shards(tmp_path / "shards", of_sizes(SIZES[:36]), 3)


@pytest.mark.parametrize(("buffer", "steps", "times"), [(1, 9, 1), (12, 9, 1), (41, 90, 10)])
def test_a_stream_gives_each_image_once_an_epoch(shards, buffer, steps, times):
    stream = build_loader(settings(shards, "webdataset", shuffle_buffer=buffer), 4, seed=0)
    drawn = Counter(i for step in range(steps) for i in numbers(stream.batch(step)))
    assert drawn == dict.fromkeys(range(36), times)  # the steps hold whole windows and epochs


@pytest.mark.parametrize("cut", [1, 3, 8, 11])
def test_a_stream_with_buckets_resumes_to_the_bit(shards, cut):
    given = settings(shards, "webdataset", shuffle_buffer=14, flip=True, caption_dropout=0.2)
    whole, resumed = (build_loader(given, 4, seed=0) for _ in range(2))
    for step in range(cut):
        whole.batch(step)
    resumed.resume(whole.position(cut), cut, "x.pt")
    for step in range(cut, cut + 12):
        one, other = whole.batch(step), resumed.batch(step)
        assert torch.equal(one.images, other.images)
        assert one.captions == other.captions


def test_bad_pictures_of_a_stream_are_counted_and_others_stand_in(tmp_path, caplog):
    pytest.importorskip("webdataset")
    made = of_sizes(SIZES[:36])
    made[3] = (b"nothing", made[3][1])  # its header can't be read
    made[7] = (made[7][0][:80], made[7][1])  # its header can
    picture_size(made[7][0])
    shards = as_shards(tmp_path / "bad", made, 3)
    stream = build_loader(settings(shards, "webdataset", max_bad=0.2), 4, seed=0)
    drawn = Counter(i for step in range(9) for i in numbers(stream.batch(step)))
    assert drawn.total() == 36
    assert not {3, 7} & drawn.keys()
    assert "00003" in caplog.text
    assert "00007" in caplog.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"resize": "pad"}, r"data\.resize=pad.*black bars.*center-crop"),
        ({"bucket_step": 12}, r"data\.bucket_step=12: must divide data\.image_size=32; use 8"),
        ({"buckets": "off"}, r"data\.bucket_step=4: is for buckets"),
        ({"bucket_aspect": 0.5}, "bucket_aspect"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(folder, changes, said):
    with pytest.raises(ValueError, match=said):
        settings(folder, **changes)


def test_measuring_is_done_on_squares(folder):
    assert load(settings(folder), "train").images.shape == (37, 3, 32, 32)


@pytest.mark.parametrize("source", ["folder", "webdataset"])
def test_a_bucket_whose_pictures_are_all_bad_stops_no_run(tmp_path, source):
    """Others stand in, in its shape, so that batches stay of one shape; and the same ones again."""
    made = of_sizes([(40, 40)] * 20 + [(60, 40)] * 4)
    made[20:] = [(png[: len(png) // 2], text) for png, text in made[20:]]  # the header is good
    if source == "folder":
        path = as_folder(tmp_path / "set", made, "txt")
    else:
        pytest.importorskip("webdataset")
        path = as_shards(tmp_path / "set", made, 1)
    options = {"max_bad": 0.2, "in_memory": False} if source == "folder" else {"max_bad": 0.2}
    loaders = [build_loader(settings(path, source, **options), 4, seed=0) for _ in range(2)]
    shapes = set()
    for step in range(18):  # three epochs
        first, again = (loader.batch(step) for loader in loaders)
        assert torch.equal(first.images, again.images) and first.captions == again.captions
        assert max(numbers(first)) < 20
        shapes.add(tuple(first.images.shape[-2:]))
    assert len(shapes) == 2
