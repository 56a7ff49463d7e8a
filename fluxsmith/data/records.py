"""Pictures as a source keeps them, still encoded: in any order (`Records`) or in shards that are
read from front to back (`Shards`)."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Protocol, runtime_checkable

from annotated_types import Interval

from fluxsmith.data.account import Account
from fluxsmith.errors import UserError

log = logging.getLogger("fluxsmith.data")

Split = Literal["train", "test"]

LOGGED, NAMED = 100, 3  # pictures that can't be used: in the log, and in an error
NO_IMAGES = "there are no images to train on; add some, or lower data.test_share"
STREAM_SAMPLE = 1000  # images of a stream, at least, that its share of bad ones is taken of


class DataSettings(Protocol):
    """What a config's data section says of any source; a source's own keys stand beside these."""

    source: str
    image_size: int
    channels: Literal[1, 3]
    resize: Literal["pad", "center-crop", "random-crop", "stretch"]
    buckets: Literal["auto", "off"]
    bucket_step: int
    bucket_aspect: float
    flip: bool
    caption_dropout: float


class ReadingSettings(DataSettings, Protocol):
    """The same for a source of files: those of `FileSettings`, and those that its way of being
    read asks for."""

    path: str | list[str] | dict[str, int] | None
    workers: int
    max_bad: float
    reference_key: str | None
    in_memory: bool | Literal["auto"]  # of a source that gives Records
    shuffle_buffer: int  # of a source that gives Shards


Repeats = Annotated[int, Interval(ge=1, le=10**6)]


@dataclass(frozen=True)
class FileSettings:
    """The keys of every source that reads pictures from files: those of a source begin with it."""

    LOCAL: ClassVar = ("path", "test_path", "workers", "in_memory", "max_bad")

    path: Annotated[
        str | list[str] | dict[str, Repeats] | None,
        "Where it lies: a folder, tar shards or a hub id; several in a list, or with how often "
        "each comes in an epoch, as in {cats: 1, dogs: 3}.",
    ] = None
    test_share: Annotated[
        float, Interval(ge=0, le=1), "Share held out where there are no test images."
    ] = 0.05
    workers: Annotated[int, Interval(ge=1, le=10**9), "Threads that decode images."] = 2
    max_bad: Annotated[float, Interval(ge=0, le=1), "Share of images that may be unreadable."] = (
        0.01
    )


# Settings that several sources of files have.
InMemory = Annotated[
    Literal["auto"] | bool, "Decode all images at the start; auto: up to 2 GiB of them."
]
ShuffleBuffer = Annotated[
    int, Interval(ge=1, le=10**9), "Images of a stream that are shuffled together."
]
WholeText = Annotated[bool, "A text file is one caption; otherwise each of its lines is."]


@dataclass(frozen=True)
class CaptionSettings(FileSettings):
    """The keys of every source whose pictures have captions of their own."""

    caption: Annotated[
        str | None, 'One caption for all images; "" trains a model without prompts.'
    ] = None
    image_key: Annotated[
        str | None, "Column of the images, or their ending in shards; found by itself."
    ] = None
    caption_key: Annotated[
        str | list[str] | None, "Column or key of the captions, or several; found by itself."
    ] = None
    reference_key: Annotated[
        str | None,
        "Column or ending of the pictures that edits begin with; captions are then instructions.",
    ] = None
    class_names: Annotated[
        list[str] | None, "Names of the classes, where the data has only their numbers."
    ] = None
    templates: Annotated[
        list[str] | None,
        'Captions from a class or a text, {} in its place; of classes "a photo of a {}".',
    ] = None
    shuffle_tags: Annotated[
        int | None, Interval(ge=0, le=1000), "Shuffle the tags between commas after the first n."
    ] = None

    def __post_init__(self) -> None:
        unused = ["caption_key", "class_names", "whole_text"]
        if self.caption is None:
            return
        if not self.caption:
            unused += ["templates", "shuffle_tags"]
        for key in unused:
            value = getattr(self, key, None)
            if value != getattr(type(self), key, None):
                raise ValueError(
                    f"{key}={value}: data.caption={self.caption!r} is the caption of "
                    f"all images; remove one of the keys"
                )


class PictureError(Exception):
    """A picture that can't be used; the message says why."""


@dataclass(frozen=True)
class FilePart:
    """A picture in the midst of a file, which is read when it is needed, where it is needed."""

    file: Path
    start: int
    size: int

    def read(self) -> bytes:
        with open(self.file, "rb") as stream:
            stream.seek(self.start)
            return stream.read(self.size)


EncodedPicture = bytes | Path | FilePart  # a picture that is not decoded yet


@dataclass(frozen=True)
class Record:
    """One picture with its captions."""

    name: str  # shown to the user
    picture: EncodedPicture
    captions: tuple[str, ...]  # none: it can't be trained on; "" is one too
    label: int | None = None  # index into the source's classes
    fault: str = ""  # why it can't be used, where its source knows
    reference: EncodedPicture | None = None  # what an edit begins with, of pictures in pairs

    @property
    def problem(self) -> str:
        """Why it can't be used, where that is known before it is decoded; empty where it isn't."""
        return self.fault or ("" if self.captions else "it has no caption")


class Records(Protocol):
    """Pictures that can be read in any order, from several threads."""

    classes: Sequence[str]  # their names; none where captions are free text

    @property
    def account(self) -> Account:
        """As far as it is known by now."""
        ...

    def digest(self) -> str:
        """Of names, captions and contents: equal where the data is the same."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def captions(self) -> Sequence[tuple[str, ...]]:
        """The captions of every record, without its picture."""
        ...


@runtime_checkable
class Shards(Protocol):
    """Pictures in shards, each of which is read from front to back."""

    classes: Sequence[str]

    @property
    def account(self) -> Account:
        """As far as it is known by now."""
        ...

    @property
    def remote(self) -> bool:
        """Whether they are read by URL."""
        ...

    def digest(self) -> str:
        """Of names and contents: equal where the data is the same."""
        ...

    def __len__(self) -> int:
        """The number of shards."""
        ...

    def read(self, shard: int, skip: int) -> Iterator[tuple[int, Record]]:
        """The records of a shard from its `skip`-th on, each with its place in the shard; places
        may be missing, such as those of another split."""
        ...


def path_of(settings: FileSettings) -> str:
    """The path, which a source of files can't do without; one of several, where there are."""
    if not settings.path:
        raise UserError("data.path: missing; name the folder, tar shards or hub id to read")
    assert isinstance(settings.path, str)
    return settings.path


def reason(error: Exception) -> str:
    """What an error of another library says, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def front_to_back(shards: Shards) -> Iterator[Record]:
    """Every record, shard after shard."""
    for shard in range(len(shards)):
        for _, record in shards.read(shard, 0):
            yield record


class Tally:
    """Counts the pictures that can't be used, logs each name once, and stops past the limit."""

    def __init__(self, max_bad: float, total: int | None = None) -> None:
        self.max_bad = max_bad
        self.total = total  # None: a stream of unknown length
        self.seen = 0
        self.bad: dict[str, str] = {}  # why, by name
        self.alone = True  # no other rank counts too, so this one stops by itself
        self._elsewhere: dict[str, str] = {}  # those that other ranks met, and what they saw
        self._seen_elsewhere = 0
        self.level = logging.WARNING  # at which they are told

    def count(self, bad: Sequence[tuple[str, str]] = (), stop: bool = True) -> None:
        """One more picture was asked for, and these (name, reason) were met on the way. Unless it
        should `stop` past the limit, that is left to `check`."""
        self.seen += 1
        for name, reason in bad:
            if name not in self.bad:
                self.bad[name] = reason
                if len(self.bad) <= LOGGED:
                    log.log(self.level, "skipped %s: %s", name, reason)
        if bad and stop and self.alone:
            self.check()

    def join(self, seen: int, bad: Sequence[Mapping[str, str]]) -> None:
        """Counts what other ranks have seen so far, and newly found bad; a UserError past the
        limit."""
        self._seen_elsewhere = seen
        for found in bad:
            self._elsewhere.update(found)
        self.check()

    def check(self) -> None:
        """A UserError where more are bad than may be."""
        seen = self.seen + self._seen_elsewhere
        most = self.max_bad * (self.total or max(seen, STREAM_SAMPLE))
        if len(self.bad) + len(self._elsewhere) > most:
            bad = self.bad | self._elsewhere
            first = "; ".join(f"{name}: {why}" for name, why in list(bad.items())[:NAMED])
            raise UserError(
                f"{len(bad):,} of {self.total or seen:,} images can't be used, more than "
                f"data.max_bad={self.max_bad:g} allows; the first is {first}; mend or remove them, "
                f"or raise data.max_bad"
            )
