"""The numbers that stand for a model, each with its interval, what real images score, and a
sentence on what it means."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fluxsmith.evaluation.report.markup import Markup, header, scrolling, tag
from fluxsmith.evaluation.report.wording import interval, is_number, number, percent

Z = 1.959964  # half the width of a normal's central 95%, in standard errors


@dataclass(frozen=True)
class Measure:
    """Where a number lies in the results of an evaluator, and how to show it."""

    name: str
    path: tuple[str, ...]  # of the value, or of an object with value, interval and floor
    meaning: str
    show: Callable[..., str] = number
    interval: str | None = None  # keys beside the value, where it is no object
    floor: str | float | None = None  # a key, or the floor itself


@dataclass(frozen=True)
class Reading:
    value: float
    interval: Sequence[float] | None
    floor: float | None


MEASURES = (
    Measure(
        "Prompt accuracy",
        ("prompt_accuracy", "accuracy"),
        "Share of samples in which a judge, trained on real images only, sees what the prompt asks "
        "for; the judge itself is right on real test images as often as the last column says.",
        percent,
        "interval",
        "judge_test_accuracy",
    ),
    Measure(
        "Fréchet distance",
        ("feature_distance", "frechet"),
        "Distance from the training images in the judge's features, both taken for Gaussians; "
        "lower is better. The interval is for endlessly many samples: the value, which few samples "
        "raise, may lie above it.",
    ),
    Measure(
        "Kernel distance",
        ("feature_distance", "kernel"),
        "The same comparison without a Gaussian and without bias from few samples; lower is "
        "better, and 0 or a little below it means no difference was seen.",
    ),
    Measure(
        "Precision",
        ("feature_distance", "precision"),
        "Share of samples that lie among real images: whether they look right.",
        percent,
    ),
    Measure(
        "Recall",
        ("feature_distance", "recall"),
        "Share of real images that lie among samples: whether the data's variety is there.",
        percent,
    ),
    Measure(
        "Density",
        ("feature_distance", "density"),
        "How closely real images surround a sample, 1 for new real ones; above it, samples keep "
        "to what is typical.",
    ),
    Measure(
        "Coverage",
        ("feature_distance", "coverage"),
        "Share of real images that have a sample near them; low where kinds of image are missing.",
        percent,
    ),
    Measure(
        "Near-copies",
        ("memorisation", "near_copies"),
        "Share of samples nearer to a training image than almost all test images are; clearly "
        "above the last column, training images are being copied.",
        percent,
        "interval",
        "test_near_copies",
    ),
    Measure(
        "Farther than test images",
        ("memorisation", "auc"),
        "Chance that a sample is farther from the training images than a test image is: half for "
        "new images, less for copies, more for samples that miss the data.",
        percent,
        "auc_interval",
        0.5,
    ),
    Measure(
        "Diversity",
        ("diversity", "overall"),
        "How much samples of one prompt differ, against real images of one label: 0 is one "
        "picture over and over, 1 the data's own variety.",
        number,
        "interval",
        1,
    ),
    Measure(
        "Straightness (0: straight)",
        ("straightness", "value"),
        "How far trajectories bend on their way from noise to data: at 0 a single step is exact, "
        "and the smaller it is, the fewer steps are enough.",
        number,
        "interval",
    ),
    Measure(
        "Inception FID",
        ("inception", "fid"),
        "The standard Fréchet distance, in the features of Inception-v3, from the training images; "
        "lower is better. It says little about images as small and grey as digits.",
    ),
    Measure(
        "Bits per dimension",
        ("likelihood", "bits_per_dimension"),
        "Upper bound of the code length that the model gives to a pixel value of held-out images, "
        "by the probability-flow ODE; lower is better.",
        number,
        "interval",
    ),
)


GRIDS = {
    "i/8": "Mean squared error of the velocity on held-out images at eight fixed t, 0 among them, "
    "as MLPerf's FLUX.1 benchmark averages it; lower is better, for models of the same data.",
    "(i+1/2)/8": "The same in the middle of each eighth, which gives no weight to t = 0, where the "
    "noise can't be told from the picture.",
}


def measures(results: Mapping[str, Any]) -> list[Measure]:
    """Those that an evaluator gave, the loss by the name of its grid among them."""
    found = results.get("results") or {}
    grids = (found.get("validation_loss") or {}).get("grids") or {}
    losses = [
        Measure(
            f"Validation loss, t = {grid}",
            ("validation_loss", "grids", grid),
            GRIDS.get(grid, "Mean squared error of the velocity on held-out images at fixed t."),
        )
        for grid in grids
    ]
    accuracy, *others = MEASURES
    return [each for each in (accuracy, *losses, *others) if read(results, each) is not None]


def read(results: Mapping[str, Any], measure: Measure) -> Reading | None:
    """None where the number wasn't measured."""
    found: Any = results.get("results") or {}
    beside: Mapping[str, Any] = {}
    for key in measure.path:
        beside, found = found, found.get(key)
        if found is None:
            return None
    if isinstance(found, Mapping):
        value = found.get("value", found.get("mean"))
        ends, floor, error = found.get("interval"), found.get("floor"), found.get("stderr")
    else:
        value, error = found, beside.get("stderr")
        ends = beside.get(measure.interval) if measure.interval else None
        floor = beside.get(measure.floor) if isinstance(measure.floor, str) else measure.floor
    if not is_number(value):
        return None
    if ends is None and is_number(error):
        ends = (value - Z * error, value + Z * error)
    return Reading(value, ends, floor)


def headline_table(results: Mapping[str, Any]) -> Markup | None:
    """A row of numbers and a line of explanation for each measure."""
    groups = []
    for measure in measures(results):
        found = read(results, measure)
        assert found is not None
        cells = (
            measure.show(found.value),
            interval(found.interval, measure.show, found.value),
            measure.show(found.floor, found.value),
        )
        groups.append(
            tag(
                "tbody",
                tag(
                    "tr",
                    tag("th", measure.name, scope="rowgroup"),
                    tag("td", tag("strong", cells[0])),
                    [tag("td", cell) for cell in cells[1:]],
                ),
                tag("tr", tag("td", measure.meaning, colspan=4, class_="meaning")),
            )
        )
    if not groups:
        return None
    caption = "Real images: what test images score in the samples' place, the floor for models."
    head = header(["Measure", "Value", "95% interval", "Real images"])
    return scrolling(tag("caption", caption), head, groups)
