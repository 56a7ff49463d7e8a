"""What became of every file: which were read is counted elsewhere, which were passed over, and for
which reason, here."""

from collections.abc import Iterator
from dataclasses import dataclass, field

SHOWN = 3  # names of each reason
MOST = 100_000  # that are counted


@dataclass
class Account:
    """Names by the reason for which they were passed over, and what else the user should know,
    such as where captions were found."""

    passed: dict[str, dict[str, None]] = field(default_factory=dict)  # names as an ordered set
    notes: list[str] = field(default_factory=list)

    def pass_over(self, reason: str, name: str) -> None:
        names = self.passed.setdefault(reason, {})
        if len(names) < MOST:
            names[name] = None  # once, though shards are read again

    def note(self, line: str) -> None:
        """What the user should know, once."""
        if line not in self.notes:
            self.notes.append(line)

    def add(self, other: "Account", where: str = "") -> None:
        """What another account holds, its names those below `where`."""
        for note in other.notes:
            self.note(f"{where}: {note}" if where else note)
        for reason, names in other.passed.items():
            for name in names:
                self.pass_over(reason, f"{where}/{name}" if where else name)

    def lines(self) -> Iterator[str]:
        """A line for each note and each reason."""
        yield from self.notes
        for reason, names in self.passed.items():
            yield f"passed over {len(names):,} ({reason}): {some(list(names))}"


def some(names: list[str], shown: int = SHOWN) -> str:
    """The first names, and that there are more."""
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
