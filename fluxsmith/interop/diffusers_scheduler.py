"""A grid of times in diffusers' words: the scheduler_config.json of its Euler scheduler for flow
matching, both ways. What our schedules can't do is refused by name."""

from collections.abc import Mapping
from typing import Any

from fluxsmith.config import SampleConfig
from fluxsmith.errors import UserError

SCHEDULER = "FlowMatchEulerDiscreteScheduler"
# Its settings that our schedules have no word for, each with the one value that means the same.
ONLY = {
    "num_train_timesteps": 1000,
    "invert_sigmas": False,
    "use_beta_sigmas": False,
    "stochastic_sampling": False,
}
SPACINGS = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential"}
SHIFTS = {  # theirs, ours, and the default of both
    "base_shift": ("base_shift", 0.5),
    "max_shift": ("max_shift", 1.15),
    "base_image_seq_len": ("base_tokens", 256),
    "max_image_seq_len": ("max_tokens", 4096),
    "time_shift_type": ("shift_type", "exponential"),
}
OTHERS = ("shift", "use_dynamic_shifting", "shift_terminal")


def schedule_from_diffusers(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The keys of our sample section that draw along the same times. A UserError names the first
    setting that they can't express."""
    fix = "set it back, or give its transformer/ folder alone, with a schedule of your own"
    kind = config.get("_class_name", SCHEDULER)
    if kind != SCHEDULER:
        raise UserError(
            f"{origin}: its scheduler is a {kind}, and {SCHEDULER} is the one known; {fix}"
        )
    for key, value in config.items():
        known = key.startswith("_") or key in {*SPACINGS, *SHIFTS, *OTHERS}
        only = ONLY.get(key)
        if not known and value not in (only, None) and (key in ONLY or value):
            raise UserError(f"{origin}: its scheduler's {key}={value} can't be drawn with; {fix}")
    found: dict[str, Any] = {}
    for key, spacing in SPACINGS.items():
        if config.get(key):
            found["spacing"] = spacing
    if terminal := config.get("shift_terminal"):
        found["shift_terminal"] = terminal
    if config.get("use_dynamic_shifting"):
        given = {ours: config.get(key) for key, (ours, _) in SHIFTS.items()}
        return {"schedule": "flux"} | {k: v for k, v in given.items() if v is not None} | found
    shift = config.get("shift", 1.0)
    if shift == 1 and not found:
        return {"schedule": "uniform"}
    return {"schedule": "shifted", "shift": shift, **found}


def schedule_to_diffusers(sample: SampleConfig) -> dict[str, Any]:
    """The scheduler_config.json with which diffusers draws along the same times."""
    if sample.schedule not in ("uniform", "shifted", "flux"):
        raise UserError(
            f"sample.schedule={sample.schedule}: diffusers' scheduler knows uniform, shifted and "
            f"flux only; use --format bfl"
        )
    keys = sample.model_dump()
    found = {"_class_name": SCHEDULER, "use_dynamic_shifting": sample.schedule == "flux"}
    for theirs, (ours, default) in SHIFTS.items():
        found[theirs] = keys.get(ours, default)
    for theirs, spacing in SPACINGS.items():
        found[theirs] = keys.get("spacing") == spacing
    terminal = keys.get("shift_terminal") or None
    return found | {"shift": keys.get("shift", 1.0), "shift_terminal": terminal}
