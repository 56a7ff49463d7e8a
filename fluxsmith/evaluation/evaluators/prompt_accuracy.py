"""How often the picture shows what the prompt says, in the eyes of the judge."""

from typing import Any

import torch

from fluxsmith.evaluation.reference import Reference
from fluxsmith.evaluation.samples import Samples
from fluxsmith.evaluation.statistics import wilson_interval
from fluxsmith.pipeline import Pipeline


def prompt_accuracy(pipeline: Pipeline, reference: Reference, samples: Samples) -> dict[str, Any]:
    """The share of samples in which the judge sees the label that was prompted, with 95% Wilson
    intervals; by caption and by phrasing; the confusion matrix (rows: prompted, columns: seen);
    and beside it the judge's own accuracy on test images, above which nothing can be measured."""
    right = (samples.seen == samples.labels).tolist()
    captions = reference.train.captions
    place = {caption: i for ways in captions for i, caption in enumerate(ways)}
    by_caption = {
        caption: {**_share(right, [p == caption for p in samples.prompts]), "label": label}
        for caption, label in reference.prompts
    }
    by_phrasing = [
        {
            "phrasing": ", ".join(ways[i] for ways in captions[:3] if i < len(ways)) + ", …",
            **_share(right, [place[p] == i for p in samples.prompts]),
        }
        for i in range(max(len(ways) for ways in captions))
    ]
    names = reference.class_names
    confusion = torch.zeros(len(names), len(names), dtype=torch.long)
    for label, shown in zip(samples.labels.tolist(), samples.seen.tolist(), strict=True):
        confusion[label, shown] += 1
    return {
        **_share(right, [True] * len(right)),
        "judge_test_accuracy": float(reference.judge.test_accuracy),
        "by_caption": {c: share for c, share in by_caption.items() if share["samples"]},
        "by_phrasing": [share for share in by_phrasing if share["samples"]],
        "confusion": confusion.tolist(),
        "labels": list(names),
    }


def _share(right: list[bool], among: list[bool]) -> dict[str, Any]:
    chosen = [r for r, a in zip(right, among, strict=True) if a]
    if not chosen:
        return {"accuracy": None, "interval": None, "samples": 0}
    return {
        "accuracy": sum(chosen) / len(chosen),
        "interval": wilson_interval(sum(chosen), len(chosen)),
        "samples": len(chosen),
    }
