"""The words of captions: the ten digits, the names of classes in templates, and which caption an
image gets in an epoch."""

from collections.abc import Sequence

import torch

from fluxsmith.data.imageset import Classes
from fluxsmith.errors import UserError
from fluxsmith.randomness import generator

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# By label: as a numeral and as a word.
DIGIT_CAPTIONS = tuple((str(digit), word) for digit, word in enumerate(WORDS))
DIGIT_CLASSES = Classes.one_a_label([str(digit) for digit in range(10)])

TEMPLATES = ("a photo of a {}",)  # for the names of classes, where none are given


def from_template(name: str, templates: Sequence[str]) -> tuple[str, ...]:
    """The captions of a class from its name, whose underscores are spaces."""
    check_templates(templates)
    return tuple(template.replace("{}", name.replace("_", " ")) for template in templates)


def check_templates(templates: Sequence[str]) -> None:
    """Raises a UserError that names the template without a place for the class's name."""
    if not templates:
        raise UserError("data.templates=[]: give at least one, such as a photo of a {}")
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(
                f"data.templates: {template!r} needs one placeholder {{}} for the name of the "
                f"class, as in 'a photo of a {{}}'"
            )


def no_templates(templates: Sequence[str] | None, found: str) -> None:
    """Refuses templates where `found` are captions already."""
    if templates is not None:
        raise UserError(
            f"data.templates={list(templates)}: {found} are captions, which templates would have "
            f"no say in; remove the key"
        )


class CaptionDraw:
    """The caption that each image gets in one epoch, addressed by (seed, epoch, image).

    A caption is dropped, that is replaced by the empty prompt, with probability `dropout`;
    otherwise each of its label's captions is equally likely.
    """

    def __init__(self, n: int, seed: int, epoch: int, dropout: float) -> None:
        draws = torch.rand(2, n, generator=generator(seed, "caption", epoch), dtype=torch.float64)
        # As numpy, which takes a number out of an array in a tenth of the time.
        self._which, self._dropped = draws[0].numpy(), (draws[1] < dropout).numpy()

    def __call__(self, image: int, captions: Sequence[str]) -> str:
        if self._dropped[image]:
            return ""
        return captions[int(self._which[image] * len(captions))]
