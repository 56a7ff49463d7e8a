"""Students beside their teacher: quality and time against evaluations of the network.

    python benchmarks/distillation.py output/image/mnist/small output/image/mnist/small-dev \\
        output/image/mnist/small-4step --num-samples 10000 --out docs/distillation

The teacher is drawn by Euler, midpoint and adams2 with 1 to 40 evaluations, a student of guidance
at several scales, one of few steps as it is. All get the same prompts and noise.
Writes OUT.md, a table, OUT.png, its plot, and OUT-pictures.png, the same noise drawn by each model.
The time of a picture is of drawing 64 at once.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import torch
from signals_cost import seconds

from fluxsmith.data.images import to_uint8
from fluxsmith.evaluation.evaluators.diversity import Diversity
from fluxsmith.evaluation.evaluators.feature_distance import FeatureDistance
from fluxsmith.evaluation.samples import Reference, Samples, Settings
from fluxsmith.flow.solvers import SOLVERS
from fluxsmith.pipeline import Pipeline
from fluxsmith.sampling import render
from fluxsmith.sampling.generate import Sampler
from fluxsmith.storage.checkpoint import newest

EVALUATIONS = 1, 2, 4, 8, 16, 40
SCALES = 1.0, 1.5, 2.0, 3.0
AT_ONCE = 64
PROMPTS = "zero", "1", "two", "3", "four", "5", "six", "7", "eight", "9"


@dataclass(frozen=True)
class Row:
    model: str
    setting: str
    evaluations: int
    accuracy: float
    frechet: float
    precision: float
    recall: float
    diversity: float
    milliseconds: float

    def cells(self) -> list[str]:
        return [
            self.model,
            self.setting,
            str(self.evaluations),
            f"{self.accuracy:.2%}",
            f"{self.frechet:.1f}",
            f"{self.precision:.3f}",
            f"{self.recall:.3f}",
            f"{self.diversity:.3f}",
            f"{self.milliseconds:.1f}",
        ]


HEAD = (
    "model", "setting", "evaluations", "accuracy", "Fréchet", "precision", "recall", "diversity",
    "ms",
)  # fmt: skip


def measured(sampler: Sampler, reference: Reference, settings: Settings, name: str) -> Row:
    samples = Samples(sampler, reference, settings)
    right = int((samples.seen == samples.labels).sum())
    distances = FeatureDistance().measure(samples)
    method = sampler.settings.guidance_method
    each = 2 if method == "cfg" and settings.guidance != 1 else 1
    prompts = ["3"] * AT_ONCE
    drawing = {"steps": settings.steps, "guidance": settings.guidance, "solver": settings.solver}
    times = [seconds(lambda: sampler.generate(prompts, **drawing)) for _ in range(3)]
    scale = "" if method == "none" else f", guidance {settings.guidance:g}"
    return Row(
        name,
        f"{settings.solver}, {settings.steps} steps{scale}",
        each * SOLVERS[settings.solver].evaluations(settings.steps),
        right / len(samples),
        distances["frechet"]["value"],
        distances["precision"]["value"],
        distances["recall"]["value"],
        Diversity().measure(samples)["overall"],
        min(times) / AT_ONCE * 1e3,
    )


def settings_of(sampler: Sampler, first: bool, n: int, seed: int) -> list[Settings]:
    own = Settings.like(sampler.settings, num_samples=n, seed=seed)
    if sampler.settings.guidance_method == "embedded":
        return [replace(own, guidance=scale) for scale in SCALES]
    if not first:
        return [own]
    found = [own, *(replace(own, guidance=scale) for scale in SCALES)]
    each = 1 if own.guidance == 1 else 2
    for name in "euler", "midpoint", "adams2":
        for budget in EVALUATIONS:
            steps = [k for k in range(1, 41) if each * SOLVERS[name].evaluations(k) == budget]
            found += [replace(own, solver=name, steps=k) for k in steps]
        found += [replace(own, solver=name, steps=1)]
    return list(dict.fromkeys(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="TEACHER STUDENT ...")
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default="ema")
    parser.add_argument("--guidance", type=float, help="of the teacher, its own by default")
    parser.add_argument("--out", type=Path, default=Path("distillation"))
    given = parser.parse_args()
    rows: list[Row] = []
    reference, shown = None, []
    for i, path in enumerate(given.models):
        pipeline = Pipeline.from_checkpoint(newest(path), weights=given.weights)
        reference = reference or Reference(pipeline.config)
        drawn = pipeline.config.sample
        if i == 0 and given.guidance is not None:
            drawn = drawn.model_copy(update={"guidance": given.guidance})
        sampler = Sampler(pipeline, drawn)
        shown.append(to_uint8(sampler.generate(PROMPTS, seed=given.seed)))
        for settings in settings_of(sampler, i == 0, given.num_samples, given.seed):
            rows.append(measured(sampler, reference, settings, str(pipeline.config.name)))
            print("| " + " | ".join(rows[-1].cells()) + " |", flush=True)
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEAD, ["---"] * len(HEAD))]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    given.out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plot(rows, given.out.with_suffix(".png"))
    names = [*dict.fromkeys(row.model for row in rows)]
    captions = [name.removeprefix(f"{names[0]}-") for name in names for _ in PROMPTS]
    sheet = render.grid(torch.cat(shown), captions, columns=len(PROMPTS))
    render.save_png(given.out.with_name(f"{given.out.name}-pictures.png"), sheet, {})


def plot(rows: list[Row], path: Path) -> None:
    """Fréchet distance and accuracy against evaluations: the teacher's solvers as lines."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    teacher = rows[0].model
    scale = rows[0].setting.partition(", guidance ")[2]  # the teacher's own
    students = dict.fromkeys(row.model for row in rows if row.model != teacher)
    for ax, key in zip(axes, ("frechet", "accuracy"), strict=True):
        for solver in "euler", "midpoint", "adams2":
            own = [row for row in rows if row.model == teacher and row.setting.startswith(solver)]
            own = [row for row in own if row.setting.endswith(f"guidance {scale}")]
            draw(ax, sorted(own, key=lambda row: row.evaluations), key, ".-", f"teacher, {solver}")
        for name in students:
            draw(ax, [row for row in rows if row.model == name], key, "o", name)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_xlabel("evaluations of the network")
        ax.set_title({"frechet": "Fréchet distance", "accuracy": "prompt accuracy"}[key])
    axes[0].set_yscale("log")
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def draw(ax: Any, rows: list[Row], key: str, style: str, label: str) -> None:
    ax.plot([r.evaluations for r in rows], [getattr(r, key) for r in rows], style, label=label)


if __name__ == "__main__":
    main()
