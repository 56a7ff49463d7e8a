"""Whether a model composes: digit, ink and paper of coloured digits, each and all at once, for
prompts like those of training and for the pairs that training never saw."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from fluxsmith.data.colored_digits import COLORS, PALETTE, captions, check_hold_out
from fluxsmith.data.images import LUMA
from fluxsmith.data.imageset import evenly
from fluxsmith.errors import UserError
from fluxsmith.evaluation.classifier import Classifier, trained_classifier
from fluxsmith.evaluation.evaluator import Evaluator, Figure, Found, Score, Section
from fluxsmith.evaluation.report import Table, interval, number, percent
from fluxsmith.evaluation.samples import Samples
from fluxsmith.evaluation.statistics import wilson_interval

STROKE = 0.05  # the share of pixels, those least like the paper, that the ink is read from
PARTS = ("digit", "ink", "paper")
SETS = {"trained": "Composition", "held_out": "Composition of held-out pairs"}


class Composition(Evaluator):
    title = "Composition"
    needs_classes = True
    least_test = 1
    given_pictures = True
    scores: ClassVar = {
        "composition": Score(("trained", "all"), "higher", percent),
        "composition_held_out": Score(("held_out", "all"), "higher", percent),
    }

    def measure(self, samples: Samples) -> Found:
        """The share of pictures in which digit, ink and paper are right, singly and together.

        The digit is what a classifier sees that was trained on the luminance of training images
        alone; the colours are the nearest of the palette. `trained` prompts are those of the
        samples, `held_out` ones are of pairs that training left out, as many pictures again.
        `test` is what real test images score: as much as the measure itself can be trusted.
        """
        data = samples.pipeline.config.data
        if data.source != "colored-digits" or data.channels != 3:
            raise UserError(
                "--metrics composition: is for data.source=colored-digits in 3 channels"
            )
        train, test = samples.reference.train, samples.reference.test
        grey = [replace(each, images=luminance(each.images)) for each in (train, test)]
        classifier = trained_classifier(grey[0], grey[1])
        if data.edits:  # what each should become is seen in the picture that the data has
            asked = torch.stack([test.class_labels, *colors(test.images)], dim=1)
            drawn, real = asked[list(samples.rows)], asked
        else:
            _, captions = samples.reference.test_batch(range(len(test)))
            drawn, real = triples_of(samples.prompts), triples_of(captions)
        found: Found = {
            "trained": _score(_right(classifier, samples.pictures, drawn)),
            "test": _score(_right(classifier, test.images, real)),
            "held_out": None,
            "pairs": [],
        }
        pairs = sorted(check_hold_out(data.hold_out or []))
        if pairs and not samples.rows:  # test images that it draws again have all pairs
            prompts = _held_out_prompts(pairs, len(samples))
            # From noise that no other sample began from.
            pictures = torch.cat([*samples.drawn(prompts, first_index=len(samples))])
            asked = triples_of(prompts)
            right = _right(classifier, pictures, asked)
            found["held_out"] = _score(right)
            for ink, digit in pairs:
                rows = (asked[:, 0] == digit) & (asked[:, 1] == ink)
                found["pairs"].append({"pair": f"{COLORS[ink]} {digit}", **_score(right[rows])})
        return found

    def figures(self, found: Found) -> list[Figure]:
        meaning = "Share of pictures in which digit, ink and paper are all as asked for."
        return [
            Figure(name, one["all"], meaning, one["interval"], found["test"]["all"], percent)
            for key, name in SETS.items()
            if (one := found[key])
        ]

    def section(self, found: Found, samples: Samples) -> Section:
        sets = [("prompts like training's", found["trained"]), ("held-out", found["held_out"])]
        sets += [(pair["pair"], pair) for pair in found["pairs"]]
        sets.append(("real test images", found["test"]))
        rows = [
            [name, *(percent(one[key]) for key in (*PARTS, "all")),
             interval(one["interval"], percent, one["all"]), number(one["samples"])]
            for name, one in sets if one
        ]  # fmt: skip
        head = ["pictures", *PARTS, "all three", "95% interval", "samples"]
        yield Table("Share of pictures that are right", head, rows)


def luminance(images: Tensor) -> Tensor:
    """How far the luminance of each pixel is from the paper's: (n, 3, h, w) uint8 -> (n, 1, h, w),
    spread over the whole range of uint8, so that light ink on dark paper looks like the reverse."""
    weights = torch.tensor(LUMA).view(1, 3, 1, 1)
    grey = (images.float() * weights).sum(1, keepdim=True)
    contrast = (grey - _outermost(grey).median(2).values[..., None, None]).abs()
    highest = contrast.amax((1, 2, 3), keepdim=True).clamp(min=1)
    return (contrast / highest * 255).round().to(torch.uint8)


def colors(images: Tensor) -> tuple[Tensor, Tensor]:
    """The places in the palette of ink and paper, (n,) each, of pictures (n, 3, h, w) uint8.

    The paper is the median of the outermost pixels; the ink is the mean of the pixels that are
    furthest from it.
    """
    palette = torch.tensor(list(PALETTE.values()), dtype=torch.float32)
    pixels = images.float().flatten(2).mT  # (n, h w, 3)
    paper = _outermost(images.float()).median(2).values  # (n, 3)
    distance = (pixels - paper[:, None]).square().sum(-1)  # (n, h w)
    furthest = distance.topk(max(1, int(STROKE * distance.shape[1])), dim=1).indices
    ink = pixels.gather(1, furthest[..., None].expand(-1, -1, 3)).mean(1)
    return torch.cdist(ink, palette).argmin(1), torch.cdist(paper, palette).argmin(1)


@cache
def triples() -> dict[str, tuple[int, int, int]]:
    """(digit, ink, paper) by caption."""
    inks = range(len(COLORS))
    known = [(d, i, p) for d in range(10) for i in inks for p in inks if i != p]
    return {caption: triple for triple in known for caption in captions(*triple)}


def triples_of(prompts: Sequence[str]) -> Tensor:
    """(digit, ink, paper) that each prompt asks for: (n, 3)."""
    return torch.tensor([triples()[prompt] for prompt in prompts])


def _outermost(images: Tensor) -> Tensor:
    """The pixels around the edge of pictures (n, c, h, w): (n, c, k)."""
    frame = torch.ones(images.shape[-2:], dtype=torch.bool)
    frame[1:-1, 1:-1] = False
    return images[..., frame]


def _right(classifier: Classifier, pictures: Tensor, asked: Tensor) -> Tensor:
    """(n, 3) bool: whether digit, ink and paper are those asked for, (n, 3)."""
    _, digit = classifier.classify(luminance(pictures))
    return torch.stack([digit, *colors(pictures)], dim=1) == asked


def _score(right: Tensor) -> Found:
    together = int(right.all(1).sum())
    return {
        "all": together / len(right),
        "interval": wilson_interval(together, len(right)),
        "samples": len(right),
        **{name: float(right[:, i].double().mean()) for i, name in enumerate(PARTS)},
    }


def _held_out_prompts(pairs: list[tuple[int, int]], most: int) -> list[str]:
    """Prompts of held-out pairs, evenly spread over pairs, papers and phrasings."""
    known = triples().items()
    of_pairs = [c for pair in pairs for c, (digit, ink, _) in known if pair == (ink, digit)]
    return evenly(of_pairs, max(most, len(pairs)))
