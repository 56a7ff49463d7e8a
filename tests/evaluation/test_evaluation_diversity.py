"""Variety within a label against brute force and known distributions."""

import pytest
import torch
from evaluation_models import covered, normal

from fluxsmith.errors import UserError
from fluxsmith.evaluation.evaluators.diversity import diversity

LABELS = torch.arange(3).repeat(100)


def pairwise(x):
    return float(torch.pdist(x).square().mean())


def test_the_mean_over_pairs():
    x, y = normal(300, 4) * (1 + LABELS[:, None]) + 100, normal(300, 4, seed=1) + 100
    few = 17  # samples, of labels 0 and 1 six and of 2 five: the sets need not be of one size
    overall, by_label = diversity(x[:few], LABELS[:few], y, LABELS)
    ours = [pairwise(x[:few][label == LABELS[:few]]) for label in range(3)]
    theirs = [pairwise(y[label == LABELS]) for label in range(3)]
    assert overall.value == pytest.approx(sum(ours) / sum(theirs))
    assert by_label == pytest.approx(
        {label: a / b for label, (a, b) in enumerate(zip(ours, theirs, strict=True))}
    )


def test_one_image_a_label_is_0_however_the_labels_differ():
    x = normal(3, 4)[LABELS] * 10
    overall, _ = diversity(x, LABELS, normal(300, 4, seed=1), LABELS)
    assert tuple(overall) == pytest.approx((0, 0, 0), abs=1e-20)


@pytest.mark.parametrize("scale", [1.0, 0.8])
def test_the_interval_covers_the_truth(scale):
    """scale^2, in 90% to 99% of 200 experiments with labels of unequal spread."""
    spread = (1 + LABELS)[:, None]
    found = [
        diversity(
            scale * spread * normal(300, 2, seed=s) + spread,
            LABELS,
            spread * normal(300, 2, seed=s + 9999),
            LABELS,
        )[0]
        for s in range(200)
    ]
    assert 180 <= covered(found, scale**2) <= 198


def test_labels_without_a_pair_are_left_out():
    labels = torch.tensor([0, 0, 1, 2, 2])
    x = normal(5, 2)
    reference = normal(6, 2, seed=1)
    reference[4:] = 7  # label 2's two references are the same
    overall, by_label = diversity(x, labels, reference, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert by_label == {0: overall.value}
    with pytest.raises(UserError, match="no label has two samples; raise --num-samples"):
        diversity(x[2:3], labels[2:3], reference, torch.tensor([0, 0, 1, 1, 2, 2]))
