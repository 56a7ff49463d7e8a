"""Pictures as a source keeps them, still encoded: in any order (`Records`) or in shards that are
read from front to back (`Shards`)."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from fluxsmith.data.settings import Split
from fluxsmith.errors import UserError
from fluxsmith.randomness import address_seed

log = logging.getLogger("fluxsmith.data")

TEST_SHARE = 0.05  # of a source without test images of its own
STREAM_SAMPLE = 1000  # images of a stream after which its share of bad ones means something


class PictureError(Exception):
    """A picture that can't be used; the message says why."""


@dataclass(frozen=True)
class Record:
    """One picture with the ways to say what is in it."""

    name: str  # that a person finds it by
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


def split_by_name(name: str, test_share: float) -> Split:
    """The split of a picture where the source has none: by its name alone, so that it keeps its
    side whatever is added around it."""
    return "test" if address_seed("test", name) < test_share * 2**63 else "train"


def indices_of_split(names: Sequence[str], test_share: float, split: Split) -> list[int]:
    """The places of the names that belong to a split, in order. Few pictures give a test picture
    all the same, as long as one is left to train with."""
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
        among = self.total if self.total is not None else max(self.seen, STREAM_SAMPLE)
        if bad and len(self.bad) > self.max_bad * among:
            name, reason = next(iter(self.bad.items()))
            whole = f"of {among:,}" if self.total is not None else f"of the first {self.seen:,}"
            raise UserError(
                f"{len(self.bad):,} {whole} images can't be used, more than "
                f"data.max_bad={self.max_bad:g} allows; the first is {name}: {reason}; mend or "
                f"remove them, or raise data.max_bad"
            )
