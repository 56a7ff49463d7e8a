"""How much the samples of one prompt differ, against how much the data of one label do."""

from typing import ClassVar

from torch import Tensor

from fluxsmith.errors import UserError
from fluxsmith.evaluation.evaluator import Evaluator, Figure, Found, Score, Section
from fluxsmith.evaluation.report import Chart
from fluxsmith.evaluation.samples import Samples
from fluxsmith.evaluation.statistics import Estimate, normal_interval


class Diversity(Evaluator):
    title = "Diversity"
    runs = "always"
    needs_classes = True
    least_test = 1
    scores: ClassVar = {"diversity": Score(("overall",), "higher")}
    curve = "diversity"

    def measure(self, samples: Samples) -> Found:
        """In the classifier's features: 1 is as diverse as the training images, 0 one picture a
        prompt."""
        reference = samples.reference
        overall, by_label = diversity(
            samples.features, samples.labels, reference.train_features, reference.train.class_labels
        )
        return {
            "overall": overall.value,
            "interval": overall.interval,
            "by_label": {reference.class_names[i]: value for i, value in by_label.items()},
        }

    def figures(self, found: Found) -> list[Figure]:
        meaning = (
            "How much samples of one prompt differ, against real images of one label: 0 is one "
            "picture over and over, 1 the data's own variety."
        )
        return [Figure("Diversity", found["overall"], meaning, found["interval"], 1)]

    def section(self, found: Found, samples: Samples) -> Section:
        by_label = {label: (value,) for label, value in found["by_label"].items()}
        caption = "How much the samples of a label differ, against how much its real images do."
        yield Chart("Diversity by label", {"": by_label}, "1: the data's own", caption=caption)


def diversity(
    samples: Tensor, sample_labels: Tensor, references: Tensor, reference_labels: Tensor
) -> tuple[Estimate, dict[int, float]]:
    """The mean squared distance between two samples of a label over that between two references:
    over all labels, and of each.

    Features are (n, d) and (m, d), labels (n,) and (m,), those of samples as prompted. The former
    divides the means over labels, each label weighing the same; its interval is the delta method's
    and covers the chance in both sets. A label with fewer than two rows in either set, or whose
    references are all the same, is left out; UserError if that leaves none.
    """
    ours, theirs = _squares(samples, sample_labels), _squares(references, reference_labels)
    labels = [label for label in ours if label in theirs and theirs[label].any()]
    if not labels:
        raise UserError("diversity: no label has two samples; raise --num-samples or leave it out")
    above, above_variance = _mean([ours[label] for label in labels])
    below, below_variance = _mean([theirs[label] for label in labels])
    ratio = above / below
    error = (above_variance + ratio**2 * below_variance) ** 0.5 / below
    by_label = {label: float(ours[label].mean() / theirs[label].mean()) for label in labels}
    return normal_interval(ratio, error, least=0.0), by_label


def _squares(features: Tensor, labels: Tensor) -> dict[int, Tensor]:
    """By label a number for each row, (n,), whose mean is the mean squared distance of two rows.

    Over all pairs i != j the mean of |x_i - x_j|^2 is 2/(n - 1) sum |x_i - mean|^2, so the pairs
    need not be formed.
    """
    found = {}
    for label in labels.unique().tolist():
        part = features[labels == label].double()
        if (n := len(part)) > 1:
            found[label] = 2 * n / (n - 1) * (part - part.mean(0)).square().sum(1)
    return found


def _mean(squares: list[Tensor]) -> tuple[float, float]:
    """The mean of the labels' means, and its variance."""
    means = [float(each.mean()) for each in squares]
    variances = [float(each.var()) / len(each) for each in squares]
    return sum(means) / len(means), sum(variances) / len(variances) ** 2
