"""A stream gives every image once an epoch, in shuffled order, and goes on exactly where it was."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from helpers import data_settings
from made_pictures import items

from fluxsmith.data.loader import AHEAD
from fluxsmith.data.records import Record
from fluxsmith.data.shard_loader import ShardLoader
from fluxsmith.errors import UserError

MADE = items(50, size=4)
SETTINGS = data_settings(
    "webdataset", image_size=4, channels=3, flip=True, caption_dropout=0.2, shuffle_buffer=8
)


class Lists:
    """Shards of 13, 13, 12 and 12 pictures, that note where they were read from."""

    classes = ()

    def __init__(self, shards: int = 4) -> None:
        self.lists = [list(range(shard, len(MADE), shards)) for shard in range(shards)]
        self.opened: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self.lists)

    def read(self, shard: int, skip: int) -> Iterator[tuple[int, Record]]:
        self.opened.append((shard, skip))
        for place, i in enumerate(self.lists[shard][skip:], start=skip):
            yield place, Record(str(i), MADE[i][0], (f"{i}", f"number {i}"))


def loader(batch_size=7, shards=4, *, seed=0, **changes) -> ShardLoader:
    return ShardLoader(Lists(shards), batch_size, seed, SETTINGS.model_copy(update=changes))


def numbers(batch) -> list[int]:
    return [int(caption.removeprefix("number ")) for caption in batch.captions]


def equal(one, other) -> bool:
    return torch.equal(one.images, other.images) and one.captions == other.captions


def test_captions_are_those_of_the_first_records_wherever_these_are():
    stream = loader()
    stream.shards.lists[0].clear()  # all of them tested on, say
    assert stream.captions()[:2] == ["1", "number 1"]


@pytest.mark.parametrize("batch_size", [5, 7, 50])
@pytest.mark.parametrize("shuffle_buffer", [1, 8, 1000])
def test_every_image_comes_exactly_once_an_epoch(batch_size, shuffle_buffer):
    stream = loader(batch_size, caption_dropout=0.0, shuffle_buffer=shuffle_buffer)
    drawn = [i for step in range(math.ceil(150 / batch_size)) for i in numbers(stream.batch(step))]
    epochs = [drawn[i * 50 : (i + 1) * 50] for i in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = loader(batch_size, seed=1, caption_dropout=0.0, shuffle_buffer=shuffle_buffer)
    assert numbers(other.batch(0)) != drawn[:batch_size]


@pytest.mark.parametrize("cut", [1, 4, 9, 17])
def test_resuming_goes_on_to_the_bit(cut):
    whole = loader()
    for step in range(cut):
        whole.batch(step)
    position = whole.position(cut)
    resumed = loader(workers=3)  # how many threads there are has no say in it
    resumed.resume(position, cut, "x.pt")
    assert resumed.position(cut) == position
    for step in range(cut, cut + 12):
        assert equal(resumed.batch(step), whole.batch(step)), step


def test_resuming_reads_no_shard_that_is_behind():
    whole = loader(shuffle_buffer=4)
    for step in range(6):
        whole.batch(step)
    resumed = loader(shuffle_buffer=4)
    resumed.resume(whole.position(6), 6, "x.pt")
    resumed.batch(6)
    before = whole.position(6)
    assert before["turn"] > 0
    assert resumed.shards.opened[0][1] == before["skip"] > 0


def test_captions_are_dropped_and_images_mirrored_at_their_rates():
    stream = loader(50)
    batches = [stream.batch(step) for step in range(20)]
    dropped = sum(caption == "" for batch in batches for caption in batch.captions)
    assert abs(dropped - 200) <= 5 * math.sqrt(1000 * 0.2 * 0.8)
    straight = loader(50, flip=False)
    mirrored = 0
    for step, batch in enumerate(batches):
        plain = straight.batch(step).images
        same = (batch.images == plain).flatten(1).all(1)
        assert torch.equal(batch.images[~same], plain[~same].flip(-1))
        mirrored += int((~same).sum())
    assert abs(mirrored - 500) <= 5 * math.sqrt(1000 / 4)


def with_a_bad_one(stream, name="5"):
    """The stream with a picture that can't be read."""
    read = stream.shards.read

    def reading(shard, skip):
        for place, record in read(shard, skip):
            yield place, replace(record, picture=b"") if record.name == name else record

    stream.shards.read = reading
    return stream


def test_another_stands_in_for_a_bad_image_and_all_others_keep_their_places(caplog):
    settings = {"max_bad": 0.1, "caption_dropout": 0.0, "flip": False}
    stream, good = with_a_bad_one(loader(5, **settings)), loader(5, **settings)
    rows = [i for step in range(10) for i in numbers(stream.batch(step))]
    expected = [i for step in range(11) for i in numbers(good.batch(step))]
    place = expected.index(5)
    assert rows[place] == expected[place + 5]  # the same row of the next batch
    assert rows[:place] + rows[place + 1 :] == expected[:place] + expected[place + 1 : 50]
    assert "skipped 5" in caplog.text


@pytest.mark.parametrize("whole", [(), (0, 1), (2, 5)])
def test_rows_of_a_batch_are_those_of_the_whole_one_and_nothing_else_is_decoded(whole):
    """Now and then a whole batch is looked at; a picture that can't be used moves no other."""
    settings = {"max_bad": 0.1}
    alone = with_a_bad_one(loader(6, **settings))
    parts = [with_a_bad_one(loader(6, **settings)) for _ in range(2)]
    decoded = []
    for stream in parts:
        plain = stream.decode
        stream.decode = lambda record, *how, plain=plain: (
            decoded.append(record.name) or plain(record, *how)
        )
    for step in range(9):
        batch = alone.batch(step)
        for part, stream in enumerate(parts):
            rows = range(3 * part, 3 * part + 3)
            found = stream.batch(step, None if step in whole else rows)
            assert equal(found.at(rows) if step in whole else found, batch.at(rows))
    if not whole:  # nine batches and those that are begun ahead, once each, and a stand-in
        before = -1
        while before < len(decoded):  # until those ahead are done
            before = len(decoded)
            time.sleep(0.2)
        assert len(decoded) <= 6 * (9 + AHEAD) + 1


def test_a_stream_knows_where_it_stands_before_and_after_its_last_batch():
    stream = loader()
    positions = [stream.position(0)]
    for step in range(3):
        stream.batch(step)
        assert stream.position(step) == positions[-1]
        positions.append(stream.position(step + 1))
    resumed = loader()
    resumed.resume(positions[2], 2, "x.pt")
    assert equal(resumed.batch(2), stream.batch(2))


def test_a_stream_can_not_jump():
    stream = loader()
    with pytest.raises(ValueError, match="can't jump"):
        stream.batch(3)
    first = stream.batch(0)
    assert equal(stream.batch(0), first)  # but the last batch can be looked at again


def test_other_data_is_refused_on_resuming():
    position = loader().position(0)
    with pytest.raises(UserError, match=r"x\.pt was trained on 4 shards, and there are 3 now"):
        loader(shards=3).resume(position, 0, "x.pt")
    with pytest.raises(UserError, match="trained on images, unlike this run"):
        loader().resume({"epoch": 0, "offset": 0, "images": 50}, 0, "x.pt")


def test_an_empty_stream_is_one_line():
    stream = loader()
    stream.shards.lists = [[], [], [], []]
    with pytest.raises(UserError, match="no images to train on; add some, or lower data"):
        stream.batch(0)


def test_a_stream_of_which_no_image_can_be_used_ends():
    """However many data.max_bad allows: it would be read again and again."""
    stream = loader(max_bad=0.9)
    stream.shards.read = lambda shard, skip: iter([(skip, Record("x.png", b"no picture", ("x",)))])
    with pytest.raises(UserError, match=r"no image that can be used.*x\.png"):
        stream.batch(0)
