"""The words for the ten digits, and which caption an image gets in an epoch."""

from collections.abc import Sequence

import torch

from fluxsmith.randomness import generator

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# By label: as a numeral and as a word.
DIGIT_CAPTIONS = tuple((str(digit), word) for digit, word in enumerate(WORDS))


class CaptionDraw:
    """The caption that each image gets in one epoch, addressed by (seed, epoch, image).

    A caption is dropped, that is replaced by the empty prompt, with probability `dropout`;
    otherwise each of its label's captions is equally likely.
    """

    def __init__(self, n: int, seed: int, epoch: int, dropout: float) -> None:
        draws = torch.rand(2, n, generator=generator(seed, "caption", epoch), dtype=torch.float64)
        self._which, self._dropped = draws[0], draws[1] < dropout

    def __call__(self, image: int, captions: Sequence[str]) -> str:
        if self._dropped[image]:
            return ""
        return captions[int(self._which[image] * len(captions))]
