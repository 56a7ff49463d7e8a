"""What looks wrong with a run, in one line, and what to try: rules over its records. Where their
thresholds come from stands in docs/signals.md, with the command that measures them again."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fluxsmith.config.train_section import TrainConfig


class Seen(dict[str, float]):
    """A record. What it doesn't hold is NaN, with which no comparison holds."""

    def __missing__(self, key: str) -> float:
        return math.nan


@dataclass(frozen=True)
class Fault:
    """One thing that can be wrong: whether it is, and the line that says so."""

    name: str
    holds: Callable[[Seen], bool]
    line: str  # of figures in a record, and advice


def _captions_fit(seen: Seen, share: float) -> bool:
    """Whether captions go with pictures less than `share` times as well as in held-out data, by
    three standard errors, where they go with each other at all."""
    here, there = seen["caption_alignment"], seen["caption_alignment_held_out"]
    errors = seen["caption_alignment_stderr"], seen["caption_alignment_stderr_held_out"]
    error = math.hypot(errors[0], share * errors[1])
    differ = seen["picture_spread"] > 0.1 * seen["picture_spread_held_out"]
    return differ and there > 5 * errors[1] and share * there - here > 3 * error


FAULTS = (
    Fault(
        "captions dropped",
        lambda seen: seen["captions_empty"] > 0.99,
        "every caption is empty, so no text is learned; lower data.caption_dropout, or give the "
        "pictures captions",
    ),
    Fault(
        "one picture",
        lambda seen: (
            seen["picture_spread"] < max(0.001, 0.1 * seen.get("picture_spread_held_out", 0))
        ),
        "the pictures hardly differ from each other; look at them with fluxsmith data",
    ),
    Fault(
        "range of pictures",
        lambda seen: (
            seen["picture_spread"] > 1.5 * seen["picture_spread_held_out"]
            or 0.1 * seen["picture_spread_held_out"]
            < seen["picture_spread"]
            < 0.67 * seen["picture_spread_held_out"]
        ),
        "pictures have a spread of {picture_spread:.2f}, and held-out ones "
        "{picture_spread_held_out:.2f}; scale both alike, to -1 to 1",
    ),
    Fault(
        "captions shuffled",
        lambda seen: _captions_fit(seen, 0.2),
        "captions have nothing to do with their pictures (alignment {caption_alignment:.3f}, in "
        "held-out data {caption_alignment_held_out:.3f}); look at how they are paired",
    ),
    Fault(
        "captions wrong",
        lambda seen: _captions_fit(seen, 0.7) and not _captions_fit(seen, 0.2),
        "many captions look wrong (their alignment with pictures is {caption_alignment:.3f}, in "
        "held-out data {caption_alignment_held_out:.3f}); look at them with fluxsmith data",
    ),
    Fault(
        "text frozen",
        lambda seen: seen["update/text"] < 1e-3 * seen["update/blocks"],
        "the text encoder does not change; see that its parameters are trained",
    ),
    Fault(
        "average stuck",
        lambda seen: seen["average_step"] < 0.1 * seen["average_share"],
        "the averaged weights, which samples are drawn with, do not follow the weights; see that "
        "the average is updated after each step",
    ),
    Fault(
        "half precision",
        lambda seen: seen["half_precision"] > 0.5,
        "the weights are kept in half precision, in which small updates are lost; keep them in "
        "float32 and set train.precision=bfloat16",
    ),
    Fault(
        "normalisation",
        lambda seen: seen["norm_error"] > 1,
        "a normalisation is missing: what blocks compute changes {norm_error:.1f}-fold with the "
        "size of what they are given; undo the change to the network's norms",
    ),
    Fault(
        "rate too high",
        lambda seen: (
            seen["peak_update"] > 0.025
            or (seen["peak_update"] > 0.01 and seen["largest_rise"] > 1.25)
        ),
        "the learning rate looks too high: at its peak a step changes the blocks by "
        "{peak_update:.1%} (the loss was at worst {largest_rise:.2f} times its lowest before); try "
        "train.learning_rate={lower:.1g}",
    ),
    Fault(
        "rate too low",
        lambda seen: (
            (seen["peak_update"] < 0.002 and seen["learned"] < 0.5)
            # A long run learns something even so; a model that is trained further has shapes.
            or (seen["peak_update"] < 0.0005 and seen["learned"] < 1.2)
        ),
        "the learning rate looks too low: at its peak a step changes the blocks by "
        "{peak_update:.2%}, and little is learned; try train.learning_rate={higher:.1g}",
    ),
    Fault(
        "text ignored",
        lambda seen: (
            seen["share"] >= 0.5
            and seen["learned"] > 1.2  # shapes, by when others have begun to read
            and seen["conditioning_gap"] + 2 * seen["conditioning_gap_stderr"]
            < 0.004 * seen["loss_held_out"]
        ),
        "the text is ignored: with other captions the loss is the same (conditioning gap "
        "{conditioning_gap:.4f} ± {conditioning_gap_stderr:.4f}); look at the captions",
    ),
    Fault(
        "by heart",
        lambda seen: seen["loss_held_out"] > 1.5 * seen["loss"],
        "the loss on held-out pictures is {loss_held_out:.3f}, in training {loss:.3f}: it learns "
        "its pictures by heart; give it more of them, a smaller model or fewer steps",
    ),
)


class Diagnosis:
    """Says of each fault once that it is there."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.said: list[str] = []
        self._lowest, self._largest_rise = math.inf, 1.0  # of the loss

    def lines(self, step: int, record: Mapping[str, float]) -> list[str]:
        """What is new in the record of a look after `step` steps."""
        train, seen = self.config, Seen(record)
        self._largest_rise = max(self._largest_rise, seen.get("loss", 0) / self._lowest)
        self._lowest = min(self._lowest, seen.get("loss", math.inf))
        if "average_step" not in record or step < train.steps // 10:
            return []
        seen["largest_rise"] = self._largest_rise
        seen["share"] = step / train.steps
        seen["average_share"] = 1 - train.ema_decay
        rate = seen["learning_rate"] / train.learning_rate
        if rate > 0.1:  # later a step is mostly rounding
            seen["peak_update"] = seen["update/blocks"] / rate
        seen["lower"], seen["higher"] = train.learning_rate / 10, train.learning_rate * 10
        found = [fault for fault in FAULTS if fault.name not in self.said and fault.holds(seen)]
        self.said += [fault.name for fault in found]
        return [f"step {step}: {fault.line.format_map(seen)}" for fault in found]

    def state_dict(self) -> dict[str, Any]:
        return {
            "said": list(self.said),
            "lowest": self._lowest,
            "largest_rise": self._largest_rise,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.said = list(state.get("said", []))
        self._lowest = float(state.get("lowest", math.inf))
        self._largest_rise = float(state.get("largest_rise", 1))
