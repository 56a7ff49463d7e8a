"""How far the pictures of a fill or a kontext model are from those that its data set has."""

from typing import ClassVar

import torch
from torch import Tensor

from fluxsmith.data.images import to_unit
from fluxsmith.errors import UserError
from fluxsmith.evaluation.evaluator import Evaluator, Figure, Found, Score
from fluxsmith.evaluation.report import number
from fluxsmith.evaluation.samples import Samples
from fluxsmith.evaluation.statistics import normal_interval


class EditError(Evaluator):
    title = "Edits"
    given_pictures = True
    least_test = 2
    scores: ClassVar = {"edit_error": Score(("mean",), "lower")}
    curve = "edit_error"

    def measure(self, samples: Samples) -> Found:
        """The mean absolute difference of a value in [0, 1] from the test picture, where something
        was drawn anew, with the standard error over pictures; and that of what the model was given:
        the reference, or the middle grey in the hole."""
        edit = samples.edit_of(samples.rows)
        if edit is None:
            raise UserError("edit_error: is for models that are given pictures, and this has text")
        target = to_unit(samples.reference.test.images[list(samples.rows)])
        given = edit.image if edit.mask is None else torch.zeros(())
        drawn = _differences(to_unit(samples.pictures), target, edit.mask)
        return {
            "mean": float(drawn.mean()),
            "stderr": float(drawn.std() / len(drawn) ** 0.5),
            "given": float(_differences(given, target, edit.mask).mean()),
            "samples": len(drawn),
        }

    def figures(self, found: Found) -> list[Figure]:
        meaning = (
            "Mean absolute difference from the picture of the data set, where something was drawn "
            "anew, on the scale of [0, 1]; of a hole there are many good fillings."
        )
        error = normal_interval(found["mean"], found["stderr"])
        return [Figure("Edit error", error.value, meaning, error.interval)]

    def rows(self, found: Found) -> list[tuple[str, str]]:
        return [("The same of what the model was given", number(found["given"], found["mean"]))]


def _differences(drawn: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """(n,), of pictures (n, c, h, w) in [-1, 1], where the mask is 1."""
    error = (drawn - target).abs().mean(1) / 2  # (n, h, w)
    where = torch.ones_like(error) if mask is None else mask[:, 0]
    return (error * where).flatten(1).sum(1) / where.flatten(1).sum(1)
