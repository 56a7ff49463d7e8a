"""How often the picture shows what the prompt says, in the eyes of the judge."""

from typing import Any

import torch

from fluxsmith.evaluation.reference import Reference
from fluxsmith.evaluation.settings import Settings
from fluxsmith.evaluation.statistics import wilson_interval
from fluxsmith.pipeline import Pipeline


def prompt_accuracy(pipeline: Pipeline, reference: Reference, settings: Settings) -> dict[str, Any]:
    """Draws every caption of the reference set equally often and lets the judge name the label.

    Gives the accuracy with its 95% Wilson interval, the same by caption, the confusion matrix
    (rows: prompted label, columns: seen label), and the judge's own accuracy on test images.
    """
    labelled = [
        (caption, label) for label, ways in enumerate(reference.train.captions) for caption in ways
    ]
    drawn = [labelled[i % len(labelled)] for i in range(settings.num_samples)]
    judge = reference.judge
    images = pipeline.generate(
        [caption for caption, _ in drawn],
        steps=settings.steps,
        guidance=settings.guidance,
        solver=settings.solver,
        seed=settings.seed,
        batch_size=100,
    )
    seen = judge.classify(images).tolist()

    classes = len(reference.train.captions)
    confusion = torch.zeros(classes, classes, dtype=torch.long)
    by_caption = {caption: [0, 0] for caption, _ in labelled}  # right, drawn
    for (caption, label), shown in zip(drawn, seen, strict=True):
        confusion[label, shown] += 1
        by_caption[caption][0] += label == shown
        by_caption[caption][1] += 1
    right = int(confusion.trace())
    return {
        "accuracy": right / len(drawn),
        "interval": wilson_interval(right, len(drawn)),
        "samples": len(drawn),
        "steps": settings.steps,
        "guidance": settings.guidance,
        "judge_test_accuracy": float(judge.test_accuracy),
        "by_caption": {c: r / n for c, (r, n) in by_caption.items() if n},
        "confusion": confusion.tolist(),
    }
