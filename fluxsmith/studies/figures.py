"""The figures that a study asks for by name, read from what its runs were measured to be.

A figure is a number of an evaluator in one of the study's drawings, `g2.frechet`; the best over all
drawings, `best.frechet`; without a prefix, that of the first drawing. `frechet@diversity=0.86` is
what the number is where another has that value, between the two drawings next to it.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxsmith.evaluation.evaluator import Score
from fluxsmith.evaluation.evaluators import scores

BEST = "best"
_NAME = re.compile(r"(?:([\w.,=+-]+)\.)?(\w+)(?:@(\w+)=(\d+(?:\.\d+)?))?")

Measured = Mapping[str, Mapping[str, Any]]  # by drawing and evaluator: what was found


@dataclass(frozen=True)
class StudyFigure:
    name: str
    score: Score
    drawings: tuple[str, ...]  # that it is read from
    evaluators: tuple[str, ...]  # that measure it
    where: tuple[Score, float] | None = None  # another number, and the value that it shall have

    @classmethod
    def read(cls, name: str, drawings: Sequence[str]) -> "StudyFigure":
        """A ValueError for a name that stands for nothing."""
        known, match = scores(), _NAME.fullmatch(name)
        drawing, key, other, level = match.groups() if match else (None, name, None, None)
        for each in filter(None, (key, other)):
            if each not in known:
                near = difflib.get_close_matches(each, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                raise ValueError(f"{name}: unknown figure {each}; {hint}")
        if drawing not in (None, BEST, *drawings):
            there = ", ".join([*drawings, BEST])
            raise ValueError(f"{name}: unknown drawing {drawing}; there are {there}")
        if other and (drawing is not None or len(drawings) < 2):
            raise ValueError(f"{name}: is read between drawings; name two or more, and none here")
        evaluators = [known[each][0] for each in (key, other) if each]
        where = (known[other][1], float(level)) if other and level else None
        over_all = drawing == BEST or where is not None
        of = tuple(drawings) if over_all else (drawing or drawings[0],)
        return cls(name, known[key][1], of, tuple(dict.fromkeys(evaluators)), where)

    def value(self, measured: Measured) -> float | None:
        """None where it was not measured, or lies beyond what was."""
        each = [self._numbers(measured.get(drawing, {})) for drawing in self.drawings]
        pairs = [(x, y) for x, y in each if x is not None and y is not None]
        if len(pairs) < len(self.drawings):
            return None
        if self.where is None:
            best = max if self.score.better == "higher" else min
            return best(y for _, y in pairs)
        at, (xs, ys) = self.where[1], zip(*sorted(pairs), strict=True)
        return float(np.interp(at, xs, ys)) if xs[0] <= at <= xs[-1] else None

    def _numbers(self, found: Mapping[str, Any]) -> tuple[float | None, float | None]:
        """The other number (0 where there is none) and this one, in one drawing."""
        of = [found.get(evaluator) for evaluator in (self.evaluators[-1], self.evaluators[0])]
        return (0.0 if self.where is None else self.where[0].of(of[0])), self.score.of(of[1])


def evaluators_of(figures: Iterable[StudyFigure], drawing: str) -> tuple[str, ...]:
    """The evaluators that a drawing needs."""
    found = [each for f in figures if drawing in f.drawings for each in f.evaluators]
    return tuple(dict.fromkeys(found))
