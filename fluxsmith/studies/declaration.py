"""What a study is, as its YAML file declares it before anything is run."""

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fluxsmith.config.comparing import flat
from fluxsmith.config.reading import build_section, read_yaml
from fluxsmith.config.types import NameIn, Positive, Section, SolverSteps
from fluxsmith.studies.figures import BEST, StudyFigure, evaluators_of

SIZES = ("model.hidden_size", "model.mlp_ratio", "model.depth", "model.depth_single_blocks")
FITS: dict[str, tuple[str, ...]] = {  # by what is held equal, the usual one first
    "steps": (),
    "parameters": SIZES,
    "flops": ("train.steps", *SIZES),
    "seconds": ("train.steps",),
}
OWN = ("seed", "name", "output_dir")  # keys that each run gets from the study
LONGEST = 81  # of a name, in characters
_NAME = re.compile(rf"[A-Za-z0-9][\w.,=+-]{{0,{LONGEST - 1}}}", re.ASCII)


def _as_overrides(given: Any) -> Any:
    """A mapping of keys, nested or dotted, as KEY=VALUE; JSON is YAML."""
    if isinstance(given, Mapping):
        return [f"{key}={json.dumps(value)}" for key, value in flat(given).items()]
    if isinstance(given, str):
        return [given]
    return [] if given is None else given


def _as_seeds(given: Any) -> Any:
    if isinstance(given, int) or (isinstance(given, list) and all(type(n) is int for n in given)):
        return given
    raise ValueError(f"seeds={given!r}: must be a number, or a list of numbers")


def _as_drawing(given: Any) -> Any:
    return {} if given is None else given


Overrides = Annotated[list[str], BeforeValidator(_as_overrides)]


class DrawingConfig(Section):
    """Settings of an evaluation; those that are not given are the run's own."""

    num_samples: Annotated[int, Field(ge=6, le=10**6)] = 1000
    """Pictures drawn."""
    guidance: float | None = None
    """Guidance scale."""
    steps: SolverSteps | None = None
    """Solver steps."""
    solver: Annotated[str, NameIn("fluxsmith.flow.solvers:SOLVERS")] | None = None
    """ODE solver."""
    weights: Literal["ema", "model"] = "ema"
    """The averaged weights or the raw ones."""


class StudyConfig(Section):
    """A study. Build it with `read_study`, which resolves `name`."""

    name: str | None = None
    """Name of the study and of its folder below output/studies; the file's by default."""
    hypothesis: Annotated[str, Field(min_length=1)]
    """What is claimed, in a sentence."""
    base: str
    """The config that all arms start from."""
    overrides: Overrides = Field(default=[])
    """KEY=VALUE, or a mapping: what all arms have in place of the base's settings."""
    arms: dict[str, Overrides] = Field(default={})
    """By name: what an arm has in place of the others' settings."""
    grid: dict[str, list[Any]] = Field(default={})
    """In place of arms: values by key; every combination is an arm."""
    baseline: str | None = None
    """The arm that the others are compared with; the first by default."""
    seeds: Annotated[int | list[int], BeforeValidator(_as_seeds)]
    """How many seeds, or which: every arm runs with each."""
    equal: Literal["steps", "parameters", "flops", "seconds"] = "steps"
    """What the arms have in common."""
    fit: str | None = None
    """The key that is fitted so; by default train.steps, for parameters model.hidden_size."""
    drawings: dict[str, Annotated[DrawingConfig, BeforeValidator(_as_drawing)]] = Field(
        default={"sample": DrawingConfig()}, min_length=1
    )
    """By name: the settings of evaluations."""
    primary: str
    """The figure that the study is about, such as prompt_accuracy, g2.frechet or best.frechet."""
    figures: list[str] = Field(default=[])
    """Others, which are reported as exploratory."""
    smallest_difference: Positive
    """The smallest difference of the primary figure that matters, in its own unit."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """The probability of seeing a difference where there is none."""

    @model_validator(mode="after")
    def _makes_sense(self) -> "StudyConfig":
        arms = "grid" if self.grid else "arms"
        named = {"name": [self.name or "study"], arms: self.all_arms, "drawings": self.drawings}
        for section, names in named.items():
            if wrong := next((name for name in names if not _NAME.fullmatch(name)), None):
                raise ValueError(
                    f"{section}.{wrong}: names a folder; use letters, digits and any of _.,=+-, "
                    f"{LONGEST} at most{'; give arms in place of the grid' * (section == 'grid')}"
                )
        if bool(self.arms) == bool(self.grid):
            raise ValueError("arms: missing; give arms, or a grid, and not both")
        if len(self.all_arms) < 2:
            raise ValueError(f"arms={list(self.all_arms)}: must be two or more to be compared")
        if len({name.lower() for name in self.all_arms}) < len(self.all_arms):
            raise ValueError("arms: two names differ in case only; rename one")
        if self.baseline is not None and self.baseline not in self.all_arms:
            there = ", ".join(self.all_arms)
            raise ValueError(f"baseline={self.baseline}: must be an arm, one of {there}")
        for override in itertools.chain(self.overrides, *self.all_arms.values()):
            if (key := override.partition("=")[0].strip()) in OWN:
                raise ValueError(f"{override}: every run gets its {key} from the study; remove it")
        if len(self.all_seeds) < 2:
            raise ValueError(
                f"seeds={self.seeds}: one seed has no spread, so that nothing can be told from "
                f"chance; take two or more, better five"
            )
        if len(set(self.all_seeds)) < len(self.all_seeds) or min(self.all_seeds) < 0:
            raise ValueError(f"seeds={self.seeds}: must be different numbers from 0 on")
        if self.fit is not None and self.fit not in FITS[self.equal]:
            of = " or ".join(FITS[self.equal]) or "no key"
            raise ValueError(
                f"fit={self.fit}: equal={self.equal} fits {of}; change the one or other"
            )
        if BEST in self.drawings:
            raise ValueError(f"drawings.{BEST}: stands for the best of them; rename it")
        for name in self.drawings:
            if not self.evaluators(name):
                raise ValueError(f"drawings.{name}: no figure is read from it; remove it")
        return self

    @property
    def all_arms(self) -> dict[str, list[str]]:
        """The overrides of each arm by its name; a grid's arms are named by their values."""
        if not self.grid:
            return self.arms
        found: dict[str, list[str]] = {}
        for values in itertools.product(*self.grid.values()):
            given = dict(zip(self.grid, values, strict=True))
            named = [f"{key.rpartition('.')[2]}={value}" for key, value in given.items()]
            name = re.sub(r"[^\w.,=+-]+", "-", ",".join(named), flags=re.ASCII)
            if name in found:
                raise ValueError(
                    f"grid: two arms would be called {name}; give each value once, or arms in "
                    f"place of the grid"
                )
            found[name] = _as_overrides(given)
        return found

    @property
    def all_seeds(self) -> list[int]:
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def against(self) -> str:
        """The baseline's name."""
        return self.baseline or next(iter(self.all_arms))

    @property
    def fitted(self) -> str | None:
        """The key that is fitted, if any."""
        return self.fit or next(iter(FITS[self.equal]), None)

    def all_figures(self) -> list[StudyFigure]:
        """The primary one first."""
        names = dict.fromkeys([self.primary, *self.figures])
        return [StudyFigure.read(name, list(self.drawings)) for name in names]

    def evaluators(self, drawing: str) -> tuple[str, ...]:
        """Those that a drawing needs."""
        return evaluators_of(self.all_figures(), drawing)


def read_study(path: Path) -> StudyConfig:
    data = read_yaml(path, "study", "studies")
    data["name"] = data.get("name") or path.stem
    return build_section(StudyConfig, data, str(path))
