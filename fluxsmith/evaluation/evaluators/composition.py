"""Whether a model composes: digit, ink and paper of coloured digits, each and all at once, for
prompts like those of training and for the pairs that training never saw."""

from typing import Any

import torch
from torch import Tensor

from fluxsmith.data.colored_digits import COLORS, PALETTE, captions, check_hold_out
from fluxsmith.data.images import LUMA, to_uint8, to_unit
from fluxsmith.data.imageset import ImageSet
from fluxsmith.errors import UserError
from fluxsmith.evaluation.judge import Judge, trained_judge
from fluxsmith.evaluation.reference import Reference
from fluxsmith.evaluation.samples import BATCH, Samples, evenly
from fluxsmith.evaluation.statistics import wilson_interval
from fluxsmith.pipeline import Pipeline

STROKE = 0.05  # the share of pixels, those least like the paper, that the ink is read from
PARTS = ("digit", "ink", "paper")


def composition(pipeline: Pipeline, reference: Reference, samples: Samples) -> dict[str, Any]:
    """The share of pictures in which digit, ink and paper are right, singly and together.

    The digit is what a judge sees that was trained on the luminance of training images alone; the
    colours are the nearest of the palette. `trained` prompts are
    those of the samples, `held_out` ones are of pairs that training left out, as many pictures
    again. `test` is what real test images score: as much as the measure itself can be trusted.
    """
    data = pipeline.config.data
    if data.source != "colored-digits" or data.channels != 3:
        raise UserError(
            "--metrics composition: is for data.source=colored-digits in 3 channels; leave it out"
        )
    train, test = reference.train, reference.test
    judge = trained_judge(_luminance_set(train), _luminance_set(test))
    asked = [_triples(train)[caption] for caption in samples.prompts]
    found: dict[str, Any] = {
        "trained": _score(judge, samples.pictures(slice(None)), torch.tensor(asked)),
        "test": _score(judge, test.images, _triples_of_images(test)),
        "held_out": None,
        "pairs": [],
    }
    pairs = sorted(check_hold_out(data.hold_out or []))
    if pairs:
        prompts, wanted = _held_out_prompts(pairs, len(samples))
        pictures = _draw(pipeline, prompts, samples)
        found["held_out"] = _score(judge, pictures, wanted)
        found["pairs"] = [_of_pair(judge, pictures, wanted, pair) for pair in pairs]
    return found


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


def _outermost(images: Tensor) -> Tensor:
    """The pixels around the edge of pictures (n, c, h, w): (n, c, k)."""
    frame = torch.ones(images.shape[-2:], dtype=torch.bool)
    frame[1:-1, 1:-1] = False
    return images[..., frame]


def _score(judge: Judge, pictures: Tensor, wanted: Tensor) -> dict[str, Any]:
    right = _right(judge, pictures, wanted)
    shares = {name: float(right[:, i].double().mean()) for i, name in enumerate(PARTS)}
    together = int(right.all(1).sum())
    return {
        "all": together / len(right),
        "interval": wilson_interval(together, len(right)),
        "samples": len(right),
        **shares,
    }


def _right(judge: Judge, pictures: Tensor, wanted: Tensor) -> Tensor:
    """(n, 3) bool: whether digit, ink and paper are as wanted."""
    _, digit = judge.look(to_unit(luminance(pictures)))
    ink, paper = colors(pictures)
    return torch.stack([digit, ink, paper], dim=1) == wanted


def _of_pair(
    judge: Judge, pictures: Tensor, wanted: Tensor, pair: tuple[int, int]
) -> dict[str, Any]:
    ink, digit = pair
    rows = (wanted[:, 0] == digit) & (wanted[:, 1] == ink)
    return {"pair": f"{COLORS[ink]} {digit}", **_score(judge, pictures[rows], wanted[rows])}


def _luminance_set(data: ImageSet) -> ImageSet:
    return data.with_images(luminance(data.images))


def _triples(data: ImageSet) -> dict[str, tuple[int, int, int]]:
    """(digit, ink, paper) by caption."""
    inks = range(len(COLORS))
    triples = [(d, i, p) for d in range(10) for i in inks for p in inks if i != p]
    known = {captions(*triple): triple for triple in triples}
    return {caption: known[ways] for ways in data.captions for caption in ways}


def _triples_of_images(data: ImageSet) -> Tensor:
    by_caption = _triples(data)
    of_label = torch.tensor([by_caption[ways[0]] for ways in data.captions])
    return of_label[data.labels]


def _held_out_prompts(pairs: list[tuple[int, int]], most: int) -> tuple[list[str], Tensor]:
    """Prompts of held-out pairs, evenly spread over pairs, papers and phrasings."""
    all_of = [
        (caption, (digit, ink, paper))
        for ink, digit in pairs
        for paper in range(len(COLORS))
        if paper != ink
        for caption in captions(digit, ink, paper)
    ]
    chosen = evenly(all_of, max(most, len(pairs)))
    return [caption for caption, _ in chosen], torch.tensor([triple for _, triple in chosen])


def _draw(pipeline: Pipeline, prompts: list[str], samples: Samples) -> Tensor:
    settings = samples.settings
    return to_uint8(
        pipeline.generate(
            prompts,
            steps=settings.steps,
            guidance=settings.guidance,
            solver=settings.solver,
            seed=settings.seed,
            first_index=len(samples),  # noise that no other sample began from
            batch_size=BATCH,
        )
    )
