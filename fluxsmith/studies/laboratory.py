"""A study from its file to its answer."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from fluxsmith.errors import UserError
from fluxsmith.evaluation.report.page import write_json
from fluxsmith.storage.files import make_folder, read_whole
from fluxsmith.studies.answer import answer
from fluxsmith.studies.costs import flops, parameters
from fluxsmith.studies.declaration import read_study
from fluxsmith.studies.execution import Stopped, execute, is_trained, outcome, to_do
from fluxsmith.studies.measuring import undrawn
from fluxsmith.studies.planning import Plan, Run, make_plan, write_plan
from fluxsmith.studies.study_markdown import write_markdown
from fluxsmith.studies.study_page import write_study_page
from fluxsmith.training.console import ProgressConsole
from fluxsmith.training.lock import FolderLock, FolderTakenError

COLUMNS = ("parameters", "steps", "FLOPs a run", "s a step", "to do", "hours")  # numbers


def study(
    declaration: Path,
    *,
    dry_run: bool = False,
    restart: bool = False,
    answer_only: bool = False,
    jobs: int = 1,
    out: Path | None = None,
    markdown: Path | None = None,
    command: str = "",
) -> int:
    """Plans, makes the runs that are missing, and answers; returns the exit code: 0, or 128 + the
    signal that stopped it, and then the same call goes on."""
    if markdown is not None and not markdown.suffix:
        raise UserError(f"--markdown {markdown}: is to be a file; name it {markdown}.md")
    declared = read_study(declaration)
    folder = Path("output/studies") / str(declared.name)
    target = out or folder
    if not dry_run:
        make_folder(target, "--out")
    if jobs > 1:  # what is timed and measured here has the threads that a run has
        torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    with FolderLock(folder) as lock, ProgressConsole() as console:
        if not dry_run:
            _take(lock, folder)
        plan = make_plan(declared, folder, console, restart)
        console.say(_shown(plan, jobs, restart))
        if dry_run:
            return 0
        write_plan(plan, restart)
        if not answer_only:
            try:
                execute(plan, jobs, console)
            except Stopped as stopped:
                done = sum(outcome(plan, run).state == "done" for run in plan.runs)
                runs = f"{done} of {len(plan.runs)} runs are done"
                console.say(f"stopped: {runs}; the same command goes on")
                return stopped.exit_code
        found = answer(plan, command, read_whole(folder / "study.json") or {})
        for place in dict.fromkeys([folder, target]):
            write_json(place / "study.json", found)
            write_study_page(plan, found, place / "index.html")
        if markdown is not None:
            write_markdown(plan, found, markdown)
        for arm, said in found["verdicts"].items():
            console.say(f"{arm} against {declared.against}, {declared.primary}: {said}")
        for line in found["notes"]:
            console.say(line)
        console.say(f"answer  {target / 'study.json'}")
        console.say(f"page    {target / 'index.html'}")
        failed = any(outcome(plan, run).state == "failed" for run in plan.runs)
    return int(failed)


def _take(lock: FolderLock, folder: Path) -> None:
    try:
        lock.take()
    except FolderTakenError:
        raise UserError(
            f"{folder}: this study is going on already; wait for it or stop it"
        ) from None


def _shown(plan: Plan, jobs: int, restart: bool) -> str:
    """The plan as a table, and the hours that what is left of it will take."""
    study, left, hours = plan.study, to_do(plan), 0.0
    sheet = Table(title=f"{study.name}: {study.hypothesis}", title_justify="left")
    for heading in ["arm", "fitted", *COLUMNS]:
        sheet.add_column(heading, justify="right" if heading in COLUMNS else "left")
    for name, arm in plan.arms.items():
        own = [run for run in plan.runs if run.arm == name]
        todo = own if restart else [run for run in left if run.arm == name]
        here = seconds_left(plan, name, todo, restart) / 3600
        hours += here
        fitted = " ".join(arm.fitted) or "–"
        sheet.add_row(
            name, fitted, f"{parameters(arm.config):,}", f"{arm.config.train.steps:,}",
            f"{flops(arm.config):.3g}", f"{arm.seconds_a_step:.3f}", f"{len(todo)} of {len(own)}",
            f"{here:.2f}",
        )  # fmt: skip
    console = Console(width=120)
    with console.capture() as captured:
        console.print(sheet)
    return (
        f"{captured.get().rstrip()}\n{len(plan.runs)} runs, equal {study.equal}, {jobs} at a time; "
        f"about {hours / jobs:.2f} hours are left, of training and drawing"
    )


def seconds_left(plan: Plan, arm: str, runs: Sequence[Run], anew: bool = False) -> float:
    """Of training and drawing that these runs of an arm still lack, or of all of it. Drawing takes
    as much of a training's seconds as of its FLOPs."""
    config, trainings, drawn = plan.arms[arm].config, 0, 0
    for run in runs:
        lacking = undrawn(plan, run)
        whole = anew or (bool(lacking) and not is_trained(plan, run))  # what was drawn is deleted
        trainings += whole
        drawings = plan.study.drawings if whole else lacking
        drawn += sum(plan.evaluations(arm, name) for name in drawings)
    share = trainings + flops(config, drawn) / flops(config) - 1
    return share * plan.arms[arm].seconds_a_step * config.train.steps
