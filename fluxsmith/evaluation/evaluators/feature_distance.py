"""How far the samples' features lie from the data's, as the classifier sees them: Fréchet and
kernel distance, precision and recall, density and coverage, each beside what real images score."""

from typing import ClassVar

import torch
from torch import Tensor

from fluxsmith.errors import UserError
from fluxsmith.evaluation.evaluator import Evaluator, Figure, Found, Score, Section
from fluxsmith.evaluation.frechet import Gaussian, frechet_distance, frechet_interval
from fluxsmith.evaluation.report import number, percent
from fluxsmith.evaluation.samples import Samples
from fluxsmith.evaluation.statistics import Estimate, normal_interval, some_rows

LEAST, ROWS = 6, 5000  # samples and images; and rows for what compares every row with every other
ADDRESS = ("evaluation", "rows")
ROUNDING = 1e-12  # relative; a tie counts as within whichever way float64 rounded it
MEANINGS = {
    "Fréchet distance": "Distance from the training images in the classifier's features, both "
    "taken for Gaussians; lower is better. The interval is for endlessly many samples: the value, "
    "which few samples raise, may lie above it.",
    "Kernel distance": "The same comparison without a Gaussian and without bias from few samples; "
    "lower is better, and 0 or a little below it means no difference was seen.",
    "Precision": "Share of samples that lie among real images: whether they look right.",
    "Recall": "Share of real images that lie among samples: whether the data's variety is there.",
    "Density": "How closely real images surround a sample, 1 for new real ones; above it, samples "
    "keep to what is typical.",
    "Coverage": "Share of real images that have a sample near them; low where kinds of image are "
    "missing.",
}


class FeatureDistance(Evaluator):
    title = "Distance in features"
    runs = "always"
    needs_classes = True
    least_test = LEAST
    scores: ClassVar = {
        "frechet": Score(("frechet", "value"), "lower"),
        "kernel": Score(("kernel", "value"), "lower"),
        "density": Score(("density", "value"), "higher"),
        **{
            name: Score((name, "value"), "higher", percent)
            for name in ("precision", "recall", "coverage")
        },
    }

    def measure(self, samples: Samples) -> Found:
        """The distances of samples from the training images with 95% intervals, and as the floor
        those of test images, as many as there are samples, or all where they are fewer.

        Figures of different numbers of samples don't compare: the Fréchet distance grows as they
        get fewer, and the floor with it.
        """
        if len(samples) < LEAST:
            raise UserError(f"--num-samples {len(samples)}: feature_distance needs {LEAST} or more")
        reference, seed, features = samples.reference, samples.settings.seed, samples.features
        train = reference.train_features
        if len(train) < LEAST:
            raise UserError(
                f"feature_distance needs {LEAST} training images; there are {len(train)}"
            )
        test = some_rows(reference.test_features, len(samples), *ADDRESS)
        data, near = Gaussian.of(train), some_rows(train, ROWS, *ADDRESS)
        distance, frechet = frechet_interval(features, data, seed)
        kernel = kernel_distance(some_rows(features, ROWS, *ADDRESS), near)
        sampled, real = manifold(features, train), manifold(test, train)
        return {
            "samples": len(samples),
            "reference_images": len(train),
            "frechet": {
                "value": distance,
                "interval": frechet.interval,
                "unbiased": frechet.value,
                "floor": frechet_distance(Gaussian.of(test), data),
            },
            "kernel": {
                "value": kernel.value,
                "interval": kernel.interval,
                "floor": kernel_distance(some_rows(test, ROWS, *ADDRESS), near).value,
            },
            **{name: {"value": sampled[name], "floor": real[name]} for name in sampled},
        }

    def figures(self, found: Found) -> list[Figure]:
        figures = []
        for name, meaning in MEANINGS.items():
            one = found[name.split()[0].lower().replace("é", "e")]
            show = number if name.endswith(("distance", "Density")) else percent
            given = one["value"], meaning, one.get("interval"), one["floor"]
            figures.append(Figure(name, *given, show))
        return figures

    def section(self, found: Found, samples: Samples) -> Section:
        images = f"{found['samples']:,} samples against {found['reference_images']:,} training"
        yield f"{', '.join(MEANINGS)}: of {images} images."


def kernel_distance(a: Tensor, b: Tensor) -> Estimate:
    """The unbiased squared maximum mean discrepancy of features (n, d) and (m, d), three or more.

    The U-statistic of Gretton et al. 2012, eq. 3, with the kernel k(x, y) = (x.y/d + 1)^3 of
    Bińkowski et al. 2018, section 4. It is below 0 about as often as above for equal
    distributions.

    The interval covers the chance in both sets of rows, by the jackknife: each row left out in
    turn, which the row sums of the kernel give in closed form. Its variance errs upwards (Efron &
    Stein 1981), by a factor near 2 where the distributions are equal.
    """
    x, y = a.double(), b.double()
    n, m = len(x), len(y)
    xx, yy = (_kernel(z, z).fill_diagonal_(0).sum(1) for z in (x, y))  # without a row with itself
    across = _kernel(x, y)
    xy, yx = across.sum(1), across.sum(0)
    within_x, within_y = xx.sum() / (n * (n - 1)), yy.sum() / (m * (m - 1))
    value = float(within_x + within_y - 2 * xy.sum() / (n * m))
    # What the distance is without row i, up to what doesn't depend on i. (n,), (m,)
    without_x = (xx.sum() - 2 * xx) / ((n - 1) * (n - 2)) + 2 * xy / ((n - 1) * m)
    without_y = (yy.sum() - 2 * yy) / ((m - 1) * (m - 2)) + 2 * yx / ((m - 1) * n)
    variance = (n - 1) * without_x.var(correction=0) + (m - 1) * without_y.var(correction=0)
    return normal_interval(value, float(variance.sqrt()))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """k(x_i, y_j): (n, m)."""
    return (x @ (y.T / x.shape[1])).add_(1).pow_(3)


def manifold(
    samples: Tensor, references: Tensor, k: int = 5, limit: int = 5000
) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al. 2019, eq. 1 and 2), density and coverage (Naeem
    et al. 2020, section 3) of features (n, d) against (m, d), more than k of either.

    A point's ball reaches to its k-th nearest neighbour in its own set, itself not counted. The
    figures depend on the numbers of rows: of either set at most `limit` rows are used, so compare
    figures of equal k, n and m only.
    """
    fake = some_rows(samples, limit, "manifold", "rows").double()
    real = some_rows(references, limit, "manifold", "rows").double()
    fake, real = fake - real.mean(0), real - real.mean(0)
    # The squared radius of each ball; the nearest is the point itself.
    reach = [torch.cdist(each, each).kthvalue(k + 1).values.square() for each in (fake, real)]
    norms = real.square().sum(1, keepdim=True) + fake.square().sum(1)  # (m, n)
    squares = torch.addmm(norms * (1 - ROUNDING), real, fake.T, alpha=-2)
    inside = squares <= reach[1][:, None]  # the ball of a data point
    recalled = (squares <= reach[0]).any(1)
    return {
        "precision": float(inside.any(0).double().mean()),
        "recall": float(recalled.double().mean()),
        "density": float(inside.sum(0).double().mean()) / k,  # balls that a sample is in, over k
        "coverage": float(inside.any(1).double().mean()),
    }
