"""The pictures that an evaluation's report shows."""

from typing import Any

from torch import Tensor

from fluxsmith.data.images import to_uint8
from fluxsmith.evaluation.reference import Reference
from fluxsmith.evaluation.report.gallery import Gallery
from fluxsmith.evaluation.samples import Samples

EACH = 10  # pictures of a prompt
PROMPTS = 20
TRAJECTORIES = 4


def collect(reference: Reference, samples: Samples, results: dict[str, Any]) -> Gallery:
    """Samples by prompt, a few trajectories, and the samples nearest to training images."""
    captions = list(dict.fromkeys(samples.prompts))[:PROMPTS]
    rows = {c: [i for i, p in enumerate(samples.prompts) if p == c][:EACH] for c in captions}
    return Gallery(
        samples=[(caption, samples.pictures(rows[caption])) for caption in captions],
        trajectories=[
            _trajectory(samples, rows[caption][0])
            for caption in captions[:: max(1, len(captions) // TRAJECTORIES)][:TRAJECTORIES]
        ],
        neighbours=_neighbours(reference, samples, results),
    )


def _trajectory(samples: Samples, row: int) -> tuple[str, list[float], list[Tensor]]:
    times: list[float] = []
    frames: list[Tensor] = []

    def keep(step: int, t: float, images: Tensor) -> None:
        times.append(t)
        frames.append(to_uint8(images[0].clamp(-1, 1)).cpu())

    samples.draw(range(row, row + 1), on_step=keep)
    return samples.prompts[row], times, frames


def _neighbours(
    reference: Reference, samples: Samples, results: dict[str, Any]
) -> list[tuple[Tensor, Tensor, float, str]]:
    pairs = results["results"].get("memorisation", {}).get("closest", [])
    return [
        (
            samples.pictures([pair["sample"]])[0],
            reference.train.images[pair["training_image"]],
            pair["distance"],
            samples.prompts[pair["sample"]],
        )
        for pair in pairs
    ]
