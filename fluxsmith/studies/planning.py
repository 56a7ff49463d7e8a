"""From a declaration to runs: the arms as configs, made equal, and held to what was run before."""

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fluxsmith.config import RunConfig, read_config
from fluxsmith.config.reading import build_config
from fluxsmith.config.reading import with_overrides as put_into
from fluxsmith.errors import UserError
from fluxsmith.flow.solvers import SOLVERS
from fluxsmith.storage.files import make_folder, parse_mapping, write_text
from fluxsmith.studies.costs import flops, naming, parameters, seconds_a_step
from fluxsmith.studies.declaration import StudyConfig
from fluxsmith.studies.equality import CHANGED, check_equal, fit
from fluxsmith.studies.sameness import changes, refuse_twins, text_of
from fluxsmith.training.console import ProgressConsole
from fluxsmith.training.lock import is_taken

ROUNDS, ROUNDS_TO_ESTIMATE = 15, 3  # of timing steps, to make arms equal or to tell the hours


class Run(NamedTuple):
    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}-{self.seed}"


@dataclass(frozen=True)
class Arm:
    config: RunConfig  # of all its runs but for seed, name and folder
    fitted: list[str]
    seconds_a_step: float  # as measured when it was planned
    origin: str  # all that the fitting depended on


@dataclass(frozen=True)
class Plan:
    study: StudyConfig
    folder: Path  # output/studies/NAME
    arms: dict[str, Arm]

    @property
    def runs(self) -> list[Run]:
        """In the order in which they are made: seed by seed, the arms of each from another one on,
        so that slow hours fall on all arms alike."""
        arms, seeds = list(self.arms), self.study.all_seeds
        return [
            Run(arms[(i + k) % len(arms)], seed)
            for i, seed in enumerate(seeds)
            for k in range(len(arms))
        ]

    def run_folder(self, run: Run) -> Path:
        return self.folder / "runs" / str(run)

    def beside(self, run: Run, ending: str) -> Path:
        """A file beside the run's folder, which stays where the folder is deleted."""
        return self.folder / "runs" / f"{run}.{ending}"

    def config_of(self, run: Run) -> RunConfig:
        own = {"seed": run.seed, "name": str(run), "output_dir": str(self.run_folder(run))}
        return changed(self.arms[run.arm].config, [f"{k}={json.dumps(v)}" for k, v in own.items()])

    def evaluations(self, arm: str, drawing: str) -> int:
        """Of the velocity, for the pictures of a drawing of one run."""
        usual, wanted = self.arms[arm].config.sample, self.study.drawings[drawing]
        if not set(self.study.evaluators(drawing)) - {"validation_loss", "conditioning_gap"}:
            return 0
        solver = SOLVERS[wanted.solver or usual.solver]
        scale = usual.guidance if wanted.guidance is None else wanted.guidance
        each = 2 if usual.guidance_method == "cfg" and scale != 1 else 1
        return wanted.num_samples * each * solver.evaluations(wanted.steps or usual.steps)


def make_plan(
    study: StudyConfig, folder: Path, console: ProgressConsole, restart: bool = False
) -> Plan:
    """Plans what is new, and takes what was planned before from the study's folder. Raises a
    UserError for arms that can't be built, are the same, or can't be made equal, and where the
    declaration no longer describes the runs that are there. Nothing is written."""
    declared = {arm: _declared(study, arm) for arm in study.all_arms}
    refuse_twins(declared)
    known = {} if restart else _known(folder / "plan.json")
    before = {
        arm: Arm(changed(config, entry["fitted"]), **entry)
        for arm, config in declared.items()
        if (entry := known.get(arm))
    }
    _refuse_changes(Plan(study, folder, before))
    origins = {arm: _origin(study, declared, arm) for arm in declared}
    kept = {arm: each for arm, each in before.items() if each.origin == origins[arm]}
    new = {arm: config for arm, config in declared.items() if arm not in kept}
    made = _made_equal(study, declared, kept, new, console) if new else {}
    plan = Plan(study, folder, {arm: kept.get(arm) or made[arm] for arm in declared})
    refuse_twins({name: arm.config for name, arm in plan.arms.items()})
    if not restart:
        _refuse_changes(plan)
    return plan


def write_plan(plan: Plan, restart: bool) -> None:
    """Keeps what was fitted and measured beside the runs; `restart` deletes those of before."""
    path = plan.folder / "plan.json"
    if restart:
        for folder in (plan.folder / "runs").glob("*/"):
            if is_taken(folder):
                raise UserError(
                    f"{folder}: its training still goes on; wait for it or stop it, then --restart"
                )
        path.unlink(missing_ok=True)
        shutil.rmtree(plan.folder / "runs", ignore_errors=True)
    make_folder(plan.folder, "the study's name")
    known = _known(path)
    for name, arm in plan.arms.items():
        known[name] = {key: value for key, value in vars(arm).items() if key != "config"}
    write_text(path, json.dumps({"arms": known}, indent=2) + "\n")


def _known(path: Path) -> dict[str, dict[str, Any]]:
    """By arm: what was fitted and measured before."""
    try:
        return parse_mapping(path.read_text(encoding="utf-8"))["arms"] if path.exists() else {}
    except (OSError, ValueError, KeyError):
        raise UserError(f"{path} is damaged; put it back, or begin anew with --restart") from None


def changed(config: RunConfig, overrides: list[str]) -> RunConfig:
    return build_config(put_into(config.model_dump(), overrides), "the fitted config")


def _declared(study: StudyConfig, arm: str) -> RunConfig:
    """An arm's config before anything is fitted."""
    own = study.all_arms[arm]
    for key in [override.partition("=")[0].strip() for override in own]:
        if study.fitted and arm != study.against and key in CHANGED[study.fitted]:
            raise UserError(f"arms.{arm}: {key} is fitted (fit={study.fitted}); remove it")
    with naming(arm):
        return read_config(study.base, [*study.overrides, *own])


def _origin(study: StudyConfig, declared: dict[str, RunConfig], arm: str) -> str:
    on: list[str] = [study.equal]
    if study.fitted:
        on += [study.fitted, study.against, text_of(declared[study.against])]
    return json.dumps([*on, text_of(declared[arm])])


def _made_equal(
    study: StudyConfig,
    declared: dict[str, RunConfig],
    kept: dict[str, Arm],
    new: dict[str, RunConfig],
    console: ProgressConsole,
) -> dict[str, Arm]:
    """The new arms, fitted to the baseline."""
    speeds: dict[str, float] = {}
    if study.equal == "seconds":  # a step takes as long however many there are
        timed = {study.against: declared[study.against], **new}
        speeds = seconds_a_step(timed, ROUNDS, console)

    def cost(arm: str, overrides: list[str]) -> float:
        config = changed(declared[arm], overrides)
        return {
            "steps": lambda: config.train.steps,
            "parameters": lambda: parameters(config),
            "flops": lambda: flops(config),
            "seconds": lambda: speeds[arm] * config.train.steps,
        }[study.equal]()

    target, fitted = cost(study.against, []), {}
    for arm, config in new.items():
        fitted[arm], reached = list[str](), cost(arm, [])
        if study.fitted and arm != study.against:
            measure = partial(cost, arm)
            fitted[arm], reached = fit(study.fitted, config, measure, target)
        check_equal(study.equal, arm, reached, study.against, target)
    configs = {arm: changed(config, fitted[arm]) for arm, config in new.items()}
    speeds = speeds or seconds_a_step(configs, ROUNDS_TO_ESTIMATE, console)
    return {
        arm: Arm(config, fitted[arm], speeds[arm], _origin(study, declared, arm))
        for arm, config in configs.items()
    }


def _refuse_changes(plan: Plan) -> None:
    """Raises a UserError where a run that is there was made with other settings."""
    for run in plan.runs:
        if (made := plan.beside(run, "yaml")).exists():
            there = changes(plan.run_folder(run), read_config(made), plan.config_of(run))
            for key, then, now in there:
                raise UserError(
                    f"{key}={now}: {run} in {plan.folder} was made with {key}={then}; set it back, "
                    f"or begin anew with --restart"
                )
