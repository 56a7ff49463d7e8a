"""Variety within a label against brute force and known distributions."""

import pytest
import torch
from evaluation_draws import normal

from fluxsmith.evaluation.diversity import diversity

LABELS = torch.arange(3).repeat(100)


def pairwise(x):
    return float(torch.pdist(x).square().mean())


def test_the_mean_over_pairs():
    x, y = normal(300, 4) * (1 + LABELS[:, None]) + 100, normal(300, 4, seed=1) + 100
    few = 17  # samples, of labels 0 and 1 six and of 2 five: the sets need not be of one size
    found = diversity(x[:few], LABELS[:few], y, LABELS)
    ours = [pairwise(x[:few][label == LABELS[:few]]) for label in range(3)]
    theirs = [pairwise(y[label == LABELS]) for label in range(3)]
    assert found.overall.value == pytest.approx(sum(ours) / sum(theirs))
    assert found.by_label == pytest.approx(
        {label: a / b for label, (a, b) in enumerate(zip(ours, theirs, strict=True))}
    )


def test_one_image_a_label_is_0_however_the_labels_differ():
    x = normal(3, 4)[LABELS] * 10
    found = diversity(x, LABELS, normal(300, 4, seed=1), LABELS)
    assert found.overall.value == pytest.approx(0, abs=1e-20)
    assert found.overall.high == pytest.approx(0, abs=1e-20)


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
        ).overall
        for s in range(200)
    ]
    assert 180 <= sum(each.low <= scale**2 <= each.high for each in found) <= 198


def test_labels_without_a_pair_are_left_out():
    labels = torch.tensor([0, 0, 1, 2, 2])
    x = normal(5, 2)
    reference = normal(6, 2, seed=1)
    reference[4:] = 7  # label 2's two references are the same
    found = diversity(x, labels, reference, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert list(found.by_label) == [0]
    assert found.overall.value == found.by_label[0]
    with pytest.raises(ValueError, match="no label"):
        diversity(x[2:3], labels[2:3], reference, torch.tensor([0, 0, 1, 1, 2, 2]))
    with pytest.raises(ValueError, match="labels have shape"):
        diversity(x, labels[:4], reference, labels)
