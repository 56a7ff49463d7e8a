"""What is trained for: the objective, and the density of the timesteps that it is taken at."""

from typing import Any, Literal

from fluxsmith.config.kinds import KindSection

# Import paths of the objectives; `Settings` of the class, if there is one, are the kind's keys.
OBJECTIVES: dict[str, Any] = {
    "flow_matching": "fluxsmith.training.flow_matching:FlowMatching",
    "stable_target": "fluxsmith.training.stable_target:StableTarget",
    "fill": "fluxsmith.training.fill:Fill",
    "kontext": "fluxsmith.training.kontext:Kontext",
    "guidance_distillation": "fluxsmith.distillation.guidance_distillation:GuidanceDistillation",
    "trajectory_distillation": (
        "fluxsmith.distillation.trajectory_distillation:TrajectoryDistillation"
    ),
    "distribution_matching": "fluxsmith.distillation.distribution_matching:DistributionMatching",
}
FROM_DATA = "flow_matching", "stable_target"  # of captions and pictures alone
FEW_STEPS = "trajectory_distillation", "distribution_matching"  # of a student that knows its steps


class ObjectiveConfig(KindSection):
    NAME = "objective"
    CHOOSER = "kind"
    REGISTRY = "fluxsmith.config.objective_section:OBJECTIVES"
    DEFAULT = "flow_matching"

    kind: str
    """flow_matching, stable_target; fill, kontext; with a teacher: *_distillation, *_matching."""


class FlowConfig(KindSection):
    NAME = "flow"
    CHOOSER = "timesteps"
    REGISTRY = "fluxsmith.flow.timesteps:DENSITIES"
    DEFAULT = "logit_normal"

    timesteps: str
    """Density of the training timesteps: uniform, logit_normal, mode or shifted."""
    prediction: Literal["velocity", "data"] = "velocity"
    """What the network gives: the velocity, or the data, which suits pixels in large patches."""
    stratified: bool = True
    """Spread each batch's timesteps evenly over the density: the same density, less variance."""
