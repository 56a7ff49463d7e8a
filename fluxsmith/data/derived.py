"""Sources made of others: several in one, and one without the captions that an encoder can't
take."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from fluxsmith.data.account import Account
from fluxsmith.data.fingerprints import digest_of
from fluxsmith.data.records import Record, Records, Shards

CaptionFault = Callable[[str], str]  # why a caption can't be used, "" where it can


@dataclass(frozen=True)
class Part:
    """One of several sources, how often its images come in an epoch, and its name."""

    source: Any  # Records, or Shards
    repeats: int
    name: str


class _Joined:
    """What joined records and joined shards share: the classes of all, and one account."""

    def __init__(self, parts: Sequence[Part]) -> None:
        of_parts = [part.source.classes for part in parts]
        # Where one part has free text, so has the whole.
        self.classes: Sequence[str] = sorted({c for of in of_parts for c in of if all(of_parts)})
        lengths = (len(part.source) * part.repeats for part in parts)
        self._parts, self._ends = parts, [*accumulate(lengths)]

    @property
    def account(self) -> Account:
        """As it is now: what shards hold is known when they were read."""
        found = Account()
        for part in self._parts:
            found.add(part.source.account, part.name)
        return found

    def __len__(self) -> int:
        return self._ends[-1]

    def digest(self) -> str:
        return digest_of((part.repeats, part.source.digest()) for part in self._parts)

    def _find(self, index: int) -> tuple[Part, int]:
        """The part that holds an index, and the index in its source."""
        which = bisect_right(self._ends, index)
        part = self._parts[which]
        begins = self._ends[which - 1] if which else 0
        return part, (index - begins) % len(part.source)

    def _relabelled(self, part: Part, record: Record) -> Record:
        """Named after its part, with its class among those of all."""
        name, label = f"{part.name}/{record.name}", record.label if self.classes else None
        if label is not None:
            label = self.classes.index(part.source.classes[label])
        return replace(record, name=name, label=label)


class JoinedRecords(_Joined):
    def __getitem__(self, index: int) -> Record:
        part, inner = self._find(index)
        return self._relabelled(part, part.source[inner])

    def captions(self) -> Sequence[tuple[str, ...]]:
        found: list[tuple[str, ...]] = []
        for part in self._parts:
            found += list(part.source.captions()) * part.repeats
        return found


class JoinedShards(_Joined):
    @property
    def remote(self) -> bool:
        return any(part.source.remote for part in self._parts)

    def read(self, shard: int, skip: int) -> Iterator[tuple[int, Record]]:
        part, inner = self._find(shard)
        for place, record in part.source.read(inner, skip):
            yield place, self._relabelled(part, record)


class _Checked:
    """A source whose captions were looked at: those with a fault are left out, and a picture that
    has no other can't be used."""

    def __init__(self, source: Records | Shards, fault: CaptionFault) -> None:
        self.classes = source.classes
        self._source: Any = source
        self._fault = fault
        self._account = Account()

    @property
    def account(self) -> Account:
        found = Account()
        for part in (self._source.account, self._account):
            found.add(part)
        return found

    def __len__(self) -> int:
        return len(self._source)

    def digest(self) -> str:
        return self._source.digest()

    def _check(self, record: Record) -> Record:
        faults = [self._fault(caption) for caption in record.captions]
        if not any(faults):
            return record
        good = tuple(c for c, fault in zip(record.captions, faults, strict=True) if not fault)
        if good:
            self._account.pass_over(
                "one of several captions, too long for the encoder", record.name
            )
        return replace(record, captions=good, fault="" if good else faults[0])


class CheckedRecords(_Checked):
    def __getitem__(self, index: int) -> Record:
        return self._check(self._source[index])

    def captions(self) -> Sequence[tuple[str, ...]]:
        return [tuple(c for c in ways if not self._fault(c)) for ways in self._source.captions()]


class CheckedShards(_Checked):
    @property
    def remote(self) -> bool:
        return bool(self._source.remote)

    def read(self, shard: int, skip: int) -> Iterator[tuple[int, Record]]:
        for place, record in self._source.read(shard, skip):
            yield place, self._check(record)
