"""The words of captions: the ten digits, and the names of classes in templates."""

from collections.abc import Sequence

import torch

from fluxsmith.data.imageset import Classes
from fluxsmith.errors import UserError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# By label: as a numeral and as a word.
DIGIT_CAPTIONS = tuple((str(digit), word) for digit, word in enumerate(WORDS))
DIGIT_CLASSES = Classes(tuple(map(str, range(10))), torch.arange(10))

TEMPLATES = ("a photo of a {}",)  # for the names of classes, where none are given


def from_template(name: str, templates: Sequence[str]) -> tuple[str, ...]:
    """The captions of a class from its name, whose underscores are spaces."""
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(
                f"data.templates: {template!r} needs one placeholder {{}} for the name of the "
                f"class, as in 'a photo of a {{}}'"
            )
    return tuple(template.replace("{}", name.replace("_", " ")) for template in templates)


def no_templates(templates: Sequence[str] | None, found: str) -> None:
    """Refuses templates where `found` are captions already."""
    if templates is not None:
        raise UserError(
            f"data.templates={list(templates)}: {found} are captions, which templates would have "
            f"no say in; remove the key"
        )
