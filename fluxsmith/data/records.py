"""Pictures as a source keeps them, still encoded: in any order (`Records`) or in shards that are
read from front to back (`Shards`)."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Protocol, runtime_checkable

from annotated_types import Interval

from fluxsmith.errors import UserError
from fluxsmith.randomness import address_seed

log = logging.getLogger("fluxsmith.data")

Split = Literal["train", "test"]

STREAM_SAMPLE = 1000  # images of a stream, at least, that its share of bad ones is taken of


class DataSettings(Protocol):
    """What a config's data section says of any source; a source's own keys stand beside these."""

    source: str
    image_size: int
    channels: Literal[1, 3]
    resize: Literal["pad", "center-crop", "random-crop", "stretch"]
    flip: bool
    caption_dropout: float


class ReadingSettings(DataSettings, Protocol):
    """The same for a source of files: those of `FileSettings`, and those that its way of being
    read asks for."""

    path: str | None
    workers: int
    max_bad: float
    in_memory: bool | Literal["auto"]  # of a source that gives Records
    shuffle_buffer: int  # of a source that gives Shards


@dataclass(frozen=True)
class FileSettings:
    """The keys of every source that reads pictures from files: those of a source begin with it."""

    LOCAL: ClassVar = ("path", "test_path", "workers", "in_memory", "max_bad")

    path: Annotated[str | None, "Where it lies: a folder, tar shards or a hub id."] = None
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
Templates = Annotated[
    list[str] | None, 'Captions of a class, {} for its name; by default "a photo of a {}".'
]


class PictureError(Exception):
    """A picture that can't be used; the message says why."""


@dataclass(frozen=True)
class Record:
    """One picture with its captions."""

    name: str  # shown to the user
    picture: bytes | Path
    captions: tuple[str, ...]  # none: it can't be trained on
    label: int | None = None  # index into the source's classes


class Records(Protocol):
    """Pictures that can be read in any order, from several threads."""

    classes: Sequence[str]  # their names; none where captions are free text

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def captions(self) -> Sequence[tuple[str, ...]]:
        """The captions of every record, without its picture."""
        ...


@runtime_checkable
class Shards(Protocol):
    """Pictures in shards, each of which is read from front to back."""

    classes: Sequence[str]

    def __len__(self) -> int:
        """The number of shards."""
        ...

    def read(self, shard: int, skip: int) -> Iterator[tuple[int, Record]]:
        """The records of a shard from its `skip`-th on, each with its place in the shard; places
        may be missing, such as those of another split."""
        ...


def path_of(settings: FileSettings) -> str:
    """The path, which a source of files can't do without."""
    if settings.path is None:
        raise UserError("data.path: missing; name the folder, tar shards or hub id to read")
    return settings.path


def reason(error: Exception) -> str:
    """What an error of another library says, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def front_to_back(shards: Shards) -> Iterator[Record]:
    """Every record, shard after shard."""
    for shard in range(len(shards)):
        for _, record in shards.read(shard, 0):
            yield record


def split_by_name(name: str, test_share: float) -> Split:
    """The split of a picture where the source has none. Only its name counts, so that a picture
    stays in its split when others are added."""
    return "test" if address_seed("test", name) < test_share * 2**63 else "train"


def belongs(name: str, test_share: float, split: Split) -> bool:
    """Whether a picture is of a split, where a share of all is held out, or of none (0)."""
    return not test_share or split_by_name(name, test_share) == split


def indices_of_split(names: Sequence[str], test_share: float, split: Split) -> list[int]:
    """The indices of the names that belong to a split, in order. With two pictures or more, at
    least one is for testing."""
    test = {i for i, name in enumerate(names) if split_by_name(name, test_share) == "test"}
    if not test and test_share and len(names) > 1:
        test = {min(range(len(names)), key=lambda i: address_seed("test", names[i]))}
    return [i for i in range(len(names)) if (i in test) == (split == "test")]


class Tally:
    """Counts the pictures that can't be used, logs each name once, and stops past the limit."""

    def __init__(self, max_bad: float, total: int | None = None) -> None:
        self.max_bad = max_bad
        self.total = total  # None: a stream of unknown length
        self.seen = 0
        self.bad: dict[str, str] = {}  # why, by name

    def count(self, bad: Sequence[tuple[str, str]] = ()) -> None:
        """One more picture was asked for, and these (name, reason) were met on the way."""
        self.seen += 1
        for name, reason in bad:
            if name not in self.bad:
                self.bad[name] = reason
                log.warning("skipped %s: %s", name, reason)
        among = self.total or max(self.seen, STREAM_SAMPLE)
        if bad and len(self.bad) > self.max_bad * among:
            name, reason = next(iter(self.bad.items()))
            raise UserError(
                f"{len(self.bad):,} of {self.total or self.seen:,} images can't be used, more than "
                f"data.max_bad={self.max_bad:g} allows; the first is {name}: {reason}; mend or "
                f"remove them, or raise data.max_bad"
            )
