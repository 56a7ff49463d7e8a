"""How often the picture shows what the prompt says, as the classifier sees it."""

from collections import defaultdict
from typing import ClassVar

from fluxsmith.evaluation.evaluator import Evaluator, Figure, Found, Score, Section
from fluxsmith.evaluation.report import Chart, percent, plots, prompt_name
from fluxsmith.evaluation.samples import Samples
from fluxsmith.evaluation.statistics import wilson_interval


class PromptAccuracy(Evaluator):
    title = "Prompt accuracy"
    runs = "always"
    needs_classes = True
    least_test = 1
    given_pictures = True
    scores: ClassVar = {"prompt_accuracy": Score(("accuracy",), "higher", percent)}
    curve = "prompt_accuracy"

    def measure(self, samples: Samples) -> Found:
        """The share of samples in which the classifier sees the label that was prompted, with its
        interval; by caption and by phrasing; the confusion matrix (rows: prompted, columns: seen);
        and the classifier's own accuracy on test images, above which nothing can be measured."""
        from sklearn.metrics import confusion_matrix

        reference = samples.reference
        right = (samples.seen == samples.labels).tolist()
        # Models that are given pictures are prompted by the test images' captions.
        ways_of = [*reference.test.captions, *reference.train.captions]
        few = reference.train.captions[:3]
        phrasing = {caption: i for ways in ways_of for i, caption in enumerate(ways)}
        asked = zip(samples.prompts, samples.labels.tolist(), strict=True)
        labels = dict(reference.prompts) | dict(asked)
        of_caption: dict[str, list[bool]] = defaultdict(list)
        of_phrasing: dict[int, list[bool]] = defaultdict(list)
        for prompt, one in zip(samples.prompts, right, strict=True):
            of_caption[prompt].append(one)
            of_phrasing[phrasing[prompt]].append(one)
        names = reference.class_names
        confusion = confusion_matrix(samples.labels, samples.seen, labels=range(len(names)))
        return {
            **_share(right),
            "classifier_test_accuracy": float(reference.classifier.test_accuracy),
            "by_caption": {
                caption: {**_share(of_caption[caption]), "label": label}
                for caption, label in labels.items()
                if caption in of_caption
            },
            "by_phrasing": [
                {"phrasing": ", ".join([*(w[i] for w in few if i < len(w)), "…"]), **_share(of)}
                for i, of in sorted(of_phrasing.items())
            ],
            "confusion": confusion.tolist(),
            "labels": list(names),
        }

    def figures(self, found: Found) -> list[Figure]:
        meaning = (
            "Share of samples in which a classifier, trained on real images only, sees what the "
            "prompt asks for; the classifier itself is right on real test images as often as the "
            "last column says."
        )
        shown = found["accuracy"], meaning, found["interval"], found["classifier_test_accuracy"]
        return [Figure("Prompt accuracy", *shown, show=percent)]

    def rows(self, found: Found) -> list[tuple[str, str]]:
        worst = sorted(found["by_caption"].items(), key=lambda item: item[1]["accuracy"])[:3]
        return [("Weakest prompts", ", ".join(f"{c!r} {percent(s['accuracy'])}" for c, s in worst))]

    def section(self, found: Found, samples: Samples) -> Section:
        rows = [(row["phrasing"], row) for row in found["by_phrasing"]]
        rows += [(prompt_name(caption), row) for caption, row in found["by_caption"].items()]
        shares = {
            f"{name}, {row['samples']} samples": (row["accuracy"], *row["interval"])
            for name, row in rows
        }
        caption = "By phrasing and by prompt; lines: 95% intervals."
        yield Chart("Accuracy by prompt", {"": shares}, caption=caption, show=percent)
        caption = "Asked for (rows) and seen by the classifier (columns)."
        yield plots.confusion("Confusion", found["confusion"], found["labels"], caption)


def _share(right: list[bool]) -> Found:
    samples, interval = len(right), wilson_interval(sum(right), len(right))
    return {"accuracy": sum(right) / samples, "interval": interval, "samples": samples}
