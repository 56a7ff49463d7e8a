"""A whole evaluation as plain data, with pictures, for the tests of its report."""

from typing import Any

import torch

from fluxsmith.evaluation.report.gallery import Gallery

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def results(
    name: str = "mnist-small",
    accuracy: float = 0.9731,
    frechet: float = 12.34,
    loss: float = 0.1234,
) -> dict[str, Any]:
    """Numbers that could have been measured; the arguments tell models apart."""
    return {
        "format": "fluxsmith-evaluation/1",
        "name": name,
        "step": 12000,
        "weights": "ema",
        "model": "9f31c2a47be0d655",
        "checkpoint": f"output/image/mnist/{name}/diffusion-12000.pt",
        "settings": {
            "num_samples": 2000,
            "steps": 20,
            "guidance": 2.5,
            "solver": "euler",
            "seed": 7,
        },
        "config": {
            "name": name,
            "data": {"source": "mnist", "image_size": 32},
            "train": {"learning_rate": 0.00037, "betas": [0.9, 0.95]},
        },
        "provenance": {
            "fluxsmith": "0.3.0",
            "torch": "2.13.0",
            "python": "3.11.7",
            "machine": "x86_64, 2 threads, cpu",
            "data_digest": "c0ffee1234",
            "command": f"fluxsmith evaluate output/image/mnist/{name} --num-samples 2000",
        },
        "seconds": {
            "validation_loss": 41.7,
            "prompt_accuracy": 613.0,
            "feature_distance": 18.2,
            "memorisation": 55.5,
        },
        "results": _results(accuracy, frechet, loss),
    }


def _results(accuracy: float, frechet: float, loss: float) -> dict[str, Any]:
    return {
        "validation_loss": {"grids": _grids(loss), "images": 1000},
        "prompt_accuracy": _accuracy(accuracy),
        "feature_distance": {
            "frechet": {
                "value": frechet,
                "interval": [frechet - 1.1, frechet + 1.3],
                "floor": 1.72,
            },
            "kernel": {"value": 0.00421, "interval": [0.0031, 0.0053], "floor": -0.00012},
            "precision": {"value": 0.912, "floor": 0.947},
            "recall": {"value": 0.871, "floor": 0.944},
            "density": {"value": 1.083, "floor": 0.998},
            "coverage": {"value": 0.893, "floor": 0.958},
            "samples": 2000,
            "reference_images": 60000,
        },
        "memorisation": {
            "near_copies": 0.0125,
            "interval": [0.0085, 0.0184],
            "test_near_copies": 0.0101,
            "auc": 0.463,
            "auc_interval": [0.451, 0.475],
            "threshold": 5.37,
            "samples": 2000,
            "samples_quantiles": [3.9 + 0.09 * i + 0.0006 * i * i for i in range(101)],
            "test_quantiles": [4.1 + 0.093 * i + 0.0007 * i * i for i in range(101)],
        },
        "diversity": {
            "overall": 0.842,
            "interval": [0.821, 0.864],
            "by_label": {word: 0.78 + 0.0137 * i for i, word in enumerate(WORDS)},
        },
        "straightness": {
            "value": 0.0713,
            "interval": [0.0698, 0.0729],
            "by_t": {f"{(i + 0.5) / 16:g}": 0.02 + 0.11 * (i / 15) ** 4 for i in range(16)},
        },
        "sweep": _sweep(accuracy, frechet),
        "likelihood": {
            "bits_per_dimension": 1.873,
            "stderr": 0.021,
            "probe_spread": 0.0089,
            "images": 100,
        },
    }


def _grids(loss: float) -> dict[str, Any]:
    def at(t: float) -> dict[str, float]:
        return {"mean": loss * (0.55 + 3.2 * (1 - t) ** 4 + 0.5 * t**8), "stderr": loss * 0.021}

    grids = {"i/8": [i / 8 for i in range(8)], "(i+1/2)/8": [(i + 0.5) / 8 for i in range(8)]}
    return {
        name: {
            "mean": sum(at(t)["mean"] for t in times) / 8,
            "stderr": loss * 0.0123,
            "by_t": {f"{t:g}": at(t) for t in times},
        }
        for name, times in grids.items()
    }


def _accuracy(accuracy: float) -> dict[str, Any]:
    def share(value: float, samples: int, label: int | None = None) -> dict[str, Any]:
        ends = [max(0.0, value - 0.031), min(1.0, value + 0.017)]
        found: dict[str, Any] = {"accuracy": value, "interval": ends, "samples": samples}
        return found if label is None else {**found, "label": label}

    captions = [(str(i), i) for i in range(10)] + [(word, i) for i, word in enumerate(WORDS)]
    confusion = [[200 if i == j else 0 for j in range(10)] for i in range(10)]
    for i, j, n in ((4, 9, 17), (7, 1, 6), (3, 5, 11), (8, 3, 4), (9, 4, 9)):
        confusion[i][i] -= n
        confusion[i][j] = n
    return {
        **share(accuracy, 2000),
        "judge_test_accuracy": 0.9917,
        "by_caption": {
            caption: share(accuracy - 0.004 * (i % 7), 100, label)
            for i, (caption, label) in enumerate(captions)
        },
        "by_phrasing": [
            {"phrasing": "0, 1, 2, …", **share(accuracy + 0.011, 1000)},
            {"phrasing": "zero, one, two, …", **share(accuracy - 0.011, 1000)},
        ],
        "confusion": confusion,
        "labels": [str(i) for i in range(10)],
    }


def _sweep(accuracy: float, frechet: float) -> dict[str, Any]:
    rows = []
    for solver, order, guidance in (("euler", 1, 1.0), ("euler", 1, 2.5), ("midpoint", 2, 2.5)):
        for steps in (2, 4, 8, 20):
            evaluations = steps * order * (1 if guidance == 1 else 2)
            lack = 0.9 / evaluations**1.2
            right = round((accuracy - 0.14 * (guidance == 1)) * (1 - lack), 4)
            rows.append(
                {
                    "solver": solver,
                    "steps": steps,
                    "guidance": guidance,
                    "evaluations": evaluations,
                    "accuracy": right,
                    "interval": [right - 0.023, min(1.0, right + 0.019)],
                    "frechet": frechet * (1 + 20 * lack),
                    "seconds": 3.7 * evaluations,
                }
            )
    chosen = {key: rows[6][key] for key in ("solver", "steps", "guidance", "evaluations")}
    best = {key: rows[7][key] for key in ("solver", "steps", "guidance", "evaluations")}
    return {
        "rows": rows,
        "tolerance": 0.013,
        "frechet_tolerance": 0.2,
        "cheapest": chosen,
        "best": best,
    }


def gallery(images: torch.Tensor | None = None, captions: list[str] | None = None) -> Gallery:
    """Pictures at random, or of `images` (n, c, h, w), n a multiple of 10, ten to a caption."""
    captions = captions or ["3", "three"]
    if images is None:
        draw = torch.Generator().manual_seed(0)
        size = (10 * len(captions), 1, 16, 16)
        images = torch.randint(256, size, generator=draw, dtype=torch.uint8)
    rows = images.split(10)
    noise = torch.randint(256, rows[0][0].shape, generator=torch.Generator().manual_seed(1))
    times = [1 - i / 20 for i in range(21)]
    frames = [((1 - t) * rows[0][0] + t * noise).to(torch.uint8) for t in times]
    return Gallery(
        samples=list(zip(captions, rows, strict=True)),
        trajectories=[(captions[0], times, frames)],
        neighbours=[
            (rows[0][i], rows[0][i + 1], 4.321 + i, captions[i % len(captions)]) for i in range(6)
        ],
    )
