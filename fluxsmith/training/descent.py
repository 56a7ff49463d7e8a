"""One step down: from a batch's inputs to new weights and their average."""

from collections.abc import Iterable
from dataclasses import dataclass

from fluxsmith.training.guard import Guard
from fluxsmith.training.metrics import Window
from fluxsmith.training.objective import Inputs, Losses, Objective
from fluxsmith.training.update import Pace, Update


@dataclass(frozen=True)
class Step:
    """All that a step needs: the pieces of its batch, of one size, and how far it goes. Only one
    piece after the other has to be in memory."""

    pieces: Iterable[Inputs]
    pace: Pace


class Descent:
    """Losses, gradient, norm, verdict, update. Where the update is masked, as on a GPU, the host
    waits for nothing in it and looks at no number, so that it can be captured."""

    def __init__(
        self, objective: Objective, accumulate: int, guard: Guard, window: Window, update: Update
    ) -> None:
        self.objective = objective
        self.accumulate = accumulate  # the number of a step's pieces
        self.guard = guard
        self.window = window
        self.update = update

    def __call__(self, step: Step) -> None:
        try:
            losses = self._gradients(step.pieces)
            norm = self.update.gradient_norm()
            good = self.guard.judge(losses, norm)
            self.window.add(losses, norm, good)
            self.update(step.pace, norm, good)
        finally:
            self.update.optimiser.zero_grad(set_to_none=True)

    def _gradients(self, pieces: Iterable[Inputs]) -> Losses:
        parts = []
        for piece in pieces:
            losses = self.objective.losses(piece)
            (losses.values.mean() / self.accumulate).backward()
            parts.append(losses.detached())
        return Losses.joined(parts)
