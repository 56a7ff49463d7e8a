"""The config of a student, from the checkpoint of its teacher."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from fluxsmith.config import RunConfig
from fluxsmith.config.reading import build_config, with_overrides
from fluxsmith.distillation.guidance_distillation import GuidanceDistillation
from fluxsmith.distillation.teacher import Teacher, require_guidance
from fluxsmith.distillation.trajectories import whole_shards
from fluxsmith.distillation.trajectory_distillation import TrajectoryDistillation
from fluxsmith.errors import UserError
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.storage.shipped import is_shipped
from fluxsmith.storage.tensor_files import DamagedFileError

DEV = "-dev"
STEPS = 1, 2, 4, 8
FROM = 4  # students of fewer steps begin as one of up to so many
MATCHED = "-matched"

# What training a student needs in place of its teacher's settings.
TRAIN: dict[str, Any] = {
    "learning_rate": 1e-3,
    "warmup_steps": 20,
    "schedule": "linear_tail",
    "tail": 0.5,
    "ema_decay": 0.99,
    "compile": False,
    "diagnose": False,  # it looks for the faults of learning from data
}
# The same of one of guidance, which at a smaller rate draws as its teacher at a little less of it.
GUIDANCE: dict[str, Any] = {"learning_rate": 1.4e-3, "tail": 0.8}
# The scales that it learns reach to this one at least, and to so many times its teacher's own.
HIGHEST, TIMES = 3.0, 2.0
# The same of one that is matched: beside a critic it needs smaller steps, and a longer average.
MATCHING: dict[str, Any] = {"learning_rate": 3e-4, "tail": 0.7, "ema_decay": 0.995}
# Of the teacher's arithmetic, and of its time, for one step and for more, which begin nearer to it.
# A step of one of n takes (8 + 3 n) / 3.
ONE_SHARE, MORE_SHARE = 0.145, 0.085
# Of the teacher's steps. One step is only to begin the matching, which finds the rest better.
DEV_SHARE, FEW_SHARE, SINGLE_SHARE = 0.033, 0.05, 0.03
LEAST = 80  # steps
# Of the images that the teacher saw, trajectories that are made, up to those of the objective.
DEV_TRAJECTORIES, FEW_TRAJECTORIES = 1 / 600, 1 / 100
PARTS = 4  # checkpoints and sample grids


def student_config(
    run: Path, steps: int | None, overrides: Sequence[str] = (), match: bool = False
) -> RunConfig:
    """The config of a student of the newest checkpoint in `run`: of few steps, or of its guidance
    where `steps` is None; with `match` of few steps and the teacher's distribution. It goes beside
    the teacher's folder, with -dev, -4step or -4step-matched to its name."""
    if steps is not None and steps not in STEPS:
        raise UserError(f"--steps {steps}: must be one of {', '.join(map(str, STEPS))}")
    path = checkpoints.newest(run)
    contents = checkpoints.load(path)
    teacher = contents["config"]
    if (kind := teacher["model"].get("conditioning", "text")) != "text":
        raise UserError(f"{path} is a {kind} model; only models of text alone can be distilled")
    require_guidance(path, teacher["sample"].get("guidance_method", ""))
    ending = DEV if steps is None else f"-{steps}step" + MATCHED * match
    folder = path.parent if path.parent.name else path.absolute().parent
    if is_shipped(path):
        folder = Path(teacher["output_dir"])
    data = deepcopy(teacher)
    data["name"] = teacher["name"].removesuffix(DEV) + ending
    data["output_dir"] = str(folder.with_name(folder.name.removesuffix(DEV) + ending))
    data["objective"] = {"teacher": str(run)}
    if match and steps is not None:
        share = (ONE_SHARE if steps == 1 else MORE_SHARE) * 3 / (8 + 3 * steps)
    else:
        share, more = SINGLE_SHARE if steps == 1 else FEW_SHARE, FEW_TRAJECTORIES
        most = TrajectoryDistillation.Settings.trajectories
        if steps is None:
            share, more = DEV_SHARE, DEV_TRAJECTORIES
            most = GuidanceDistillation.Settings.trajectories
        paths = min(most, whole_shards(more * contents["images_seen"]))
        data["objective"]["trajectories"] = paths
        if is_shipped(path):
            data["objective"]["cache"] = str(folder / "trajectories")
    length = max(LEAST, round(share * teacher["train"]["steps"]))
    every = max(1, length // PARTS)
    del data["train"]["init_from"]
    data["train"].pop("adapter", None)  # a student of a LoRA is a whole model
    data["train"] |= TRAIN | {"steps": length, "sample_every": every, "checkpoint_every": every}
    data["evaluate"]["every"] = 0
    if steps is None:
        if teacher["model"]["guidance_embed"]:
            raise UserError(f"{path} has its guidance as an input already; give --steps 4")
        highest = max(HIGHEST, TIMES * teacher["sample"]["guidance"])
        data["train"] |= GUIDANCE
        data["objective"] |= {"kind": "guidance_distillation", "highest_guidance": highest}
        data["model"]["guidance_embed"] = True
        data["sample"] |= {"guidance_method": "embedded", "guidance_interval": [0.0, 1.0]}
    else:
        data["objective"] |= {
            "kind": "distribution_matching" if match else "trajectory_distillation",
            "steps": steps,
            "guidance": teacher["sample"]["guidance"],
        }
        if match:
            data["train"] |= MATCHING
        data["model"]["guidance_embed"] = False
        few = {"steps": steps, "solver": "euler", "guidance": 1.0, "guidance_method": "none"}
        data["sample"] |= few | {"guidance_interval": [0.0, 1.0]}
    data = with_overrides(data, overrides)
    adapted = (data["train"].get("adapter") or {}).get("kind", "none") != "none"
    own = Path(data["output_dir"].removesuffix(MATCHED))
    if adapted:
        start: str | None = str(run)
    elif match and _is_that_student(own, data["objective"]):
        start = str(own)
    else:
        start = _begun_from(folder, data["objective"], as_many=match)
    named = "init_from" in data["train"]
    data["train"].setdefault("init_from", start)
    config = build_config(data, origin=f"a student of {path}")
    if match and start is None and not named and not checkpoints.find(Path(data["output_dir"])):
        raise UserError(
            f"--match: goes on from a finished student of as many steps or more, of the same "
            f"teacher and scale, and there is none beside {folder}; make one first, by --steps "
            f"{max(FROM, data['objective']['steps'])}, or name one by train.init_from"
        )
    return config


def _begun_from(teacher: Path, objective: dict[str, Any], as_many: bool) -> str | None:
    """The run beside its teacher's of a student that learns the same in more steps, up to FROM, or
    in as many, from which one begins; None where there is none."""
    base, steps = teacher.name.removesuffix(DEV), objective.get("steps")
    if steps not in STEPS:
        return None
    for n in STEPS:
        folder = teacher.with_name(f"{base}-{n}step")
        fits = steps < n <= FROM or (as_many and n == steps)
        if fits and _is_that_student(folder, objective | {"steps": n}):
            return str(folder)
    return None


def _is_that_student(folder: Path, objective: dict[str, Any]) -> bool:
    """Whether a run's folder holds the finished student of this teacher, scale and number of steps
    that was held to trajectories."""
    found = checkpoints.find(folder)
    if not found:
        return False
    try:
        contents = checkpoints.load(found[-1][1])
    except DamagedFileError:
        return False
    theirs = contents["config"]["objective"]
    keys = "teacher", "guidance", "steps"
    return bool(
        theirs["kind"] == "trajectory_distillation"
        and all(theirs.get(key) == objective.get(key) for key in keys)
        and contents["step"] == contents["config"]["train"]["steps"]  # it was not stopped
        # The teacher may have been trained anew since.
        and contents["metadata"]["teacher"] == Teacher(objective["teacher"]).digest
    )
