"""Whether samples are copies of training images: are they nearer to them than new images are?"""

from typing import ClassVar

import numpy as np
import scipy
from torch import Tensor

from fluxsmith.data.images import to_unit
from fluxsmith.evaluation.evaluator import Evaluator, Figure, Found, Score, Section
from fluxsmith.evaluation.report import Chart, Picture, Pictures, number, percent, prompt_name
from fluxsmith.evaluation.samples import Samples
from fluxsmith.evaluation.statistics import normal_interval, wilson_interval

MOST = 5000  # samples, and test images, whose nearest training image is looked for
NEAR_COPY = 0.01  # the share of test images that are nearer to a training image than a near-copy
PAIRS = 12  # the closest ones, to look at


class Memorisation(Evaluator):
    title = "Memorisation"
    runs = "always"
    least_test = 2
    scores: ClassVar = {"near_copies": Score(("near_copies",), "lower", percent)}

    def measure(self, samples: Samples) -> Found:
        """Distances in pixels, in [-1, 1], of samples to their nearest training image against those
        of test images; the share of near-copies; the closest pairs."""
        train = to_unit(samples.reference.train.images).flatten(1)
        ours, which = nearest(to_unit(samples.pictures[:MOST]).flatten(1), train)
        test, _ = nearest(to_unit(samples.reference.test.images[:MOST]).flatten(1), train)
        at = np.linspace(0, 1, 101)
        return {
            **copying(ours, test),
            "samples": len(ours),
            "samples_quantiles": np.quantile(ours, at).tolist(),
            "test_quantiles": np.quantile(test, at).tolist(),
            "closest": [
                {"sample": i, "training_image": int(which[i]), "distance": float(ours[i])}
                for i in ours.argsort()[:PAIRS].tolist()
            ],
        }

    def figures(self, found: Found) -> list[Figure]:
        copies = (
            "Share of samples nearer to a training image than almost all test images are; clearly "
            "above the last column, training images are being copied."
        )
        farther = (
            "Chance that a sample is farther from the training images than a test image is: half "
            "for new images, less for copies, more for samples that miss the data."
        )
        near = found["near_copies"], copies, found["interval"], found["test_near_copies"], percent
        auc = found["auc"], farther, found["auc_interval"], 0.5, percent
        return [Figure("Near-copies", *near), Figure("Farther than test images", *auc)]

    def section(self, found: Found, samples: Samples) -> Section:
        threshold = found["threshold"]
        yield (
            f"A near-copy is nearer to a training image than {number(threshold)} (dotted), as "
            f"{percent(found['test_near_copies'])} of test images are. Where the samples' curve is "
            "below that of test images, they are nearer to the training images than new images "
            "are: copies, or only very typical. Look at the pairs."
        )
        named = {"samples": found["samples_quantiles"], "test images": found["test_quantiles"]}
        series = {name: {i: (d,) for i, d in enumerate(values)} for name, values in named.items()}
        shown = "Distance to the nearest training image", series, "% of images, by distance"
        yield Chart(*shown, "distance", dress=lambda axes: axes.axhline(threshold, ls=":", c="k"))
        yield "Left a sample, right the training image nearest to it, and their distance."
        pairs = []
        for pair in found["closest"]:
            prompt = prompt_name(samples.prompts[pair["sample"]])
            ours = Picture.of(samples.pictures[pair["sample"]], f"sample of {prompt}")
            real = samples.reference.train.images[pair["training_image"]]
            both = [ours, Picture.of(real, "nearest training image")]
            pairs.append((f"{prompt}\ndistance {number(pair['distance'])}", both))
        yield Pictures(pairs, "pairs")


def nearest(queries: Tensor, references: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The Euclidean distance (n,) of each query (n, d) to the nearest of the references (m, d), in
    float64, and which that is (n,).

    scikit-learn's search goes by matrix products, which lose digits: so that a copy is at distance
    0, the distance is computed again from the difference.
    """
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(references.numpy())
    which = search.kneighbors(queries.numpy(), return_distance=False)[:, 0]
    pairs = zip(queries, which, strict=True)
    return np.array([float((a.double() - references[i]).norm()) for a, i in pairs]), which


def copying(samples: np.ndarray, tests: np.ndarray) -> Found:
    """Whether samples lie nearer to the training set than new images of the same kind do.

    Takes the distance of each sample, (n,), and of each test image, (m,), to its nearest training
    image. A near-copy is nearer than all but one in a hundred test images, so that without copying
    one in a hundred samples is as near. The smallest test distance would depend on one image,
    often a duplicate in the data.

    `auc` is P(sample > test) + P(sample = test)/2, the Mann-Whitney statistic over n m (Meehan et
    al. 2020, without their division into cells), its interval that of DeLong et al. 1988. Typical
    samples (strong guidance) are near to the training set too, without being copies.
    """
    threshold = float(np.quantile(tests, NEAR_COPY))
    near = int((samples < threshold).sum())
    above = scipy.stats.percentileofscore(tests, samples, kind="mean") / 100  # (n,)
    below = scipy.stats.percentileofscore(samples, tests, kind="mean") / 100  # (m,)
    error = (above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below)) ** 0.5
    auc = normal_interval(float(above.mean()), float(error), 0, 1)
    return {
        "near_copies": near / len(samples),
        "interval": wilson_interval(near, len(samples)),
        "test_near_copies": float((tests < threshold).mean()),
        "threshold": threshold,
        "auc": auc.value,
        "auc_interval": auc.interval,
    }
