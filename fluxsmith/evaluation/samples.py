"""What an evaluation compares: data, and the samples of a model, which are drawn once, in one pass,
and shared by every evaluator.

Pictures are kept as uint8 in a temporary file and only their features in memory, so that 50,000
samples need no 50,000 pictures in memory.
"""

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from fluxsmith.autoencoder.conditioning import ImageCondition
from fluxsmith.config import RunConfig, SampleConfig
from fluxsmith.data import load
from fluxsmith.data.images import to_uint8
from fluxsmith.data.imageset import ImageSet, evenly
from fluxsmith.errors import UserError
from fluxsmith.evaluation.classifier import Classifier, trained_classifier
from fluxsmith.parallel.ranks import ALONE, Ranks
from fluxsmith.pipeline import caption_fault
from fluxsmith.randomness import generator
from fluxsmith.sampling.edit import Edit, held_out_edit
from fluxsmith.sampling.generate import OnStep, Sampler
from fluxsmith.storage.files import explaining

Done = TypeVar("Done")

BATCH, TOKENS = 100, 16_384  # pictures at once, and image tokens: fewer pictures of large ones


class Reference:
    """The training and test images of a config's data set, as its model sees them, and the
    classifier trained on them; each loaded when it is first needed, by all `ranks`, which share
    the work of measuring. `together`: they have shares of a network, and compute at one time.
    `each_step` of the classifier's training may end it by an error."""

    def __init__(
        self, config: RunConfig, ranks: Ranks = ALONE, together: bool = False,
        each_step: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._data, self._fault, self.ranks = config.data, caption_fault(config), ranks
        self.together, self._each_step = together, each_step

    def shared(
        self, batches: Sequence[range], work: Callable[[range], Done], guided: bool = False
    ) -> Iterator[Done]:
        """What `work` makes of each batch of rows, in order. How often the network is called for a
        `guided` velocity depends on the captions, so ranks with shares of it can't part there."""
        ranks = ALONE if self.together and guided else self.ranks
        return ranks.shared(batches, work, self.together)

    @cached_property
    def train(self) -> ImageSet:
        with self.ranks.first_alone():
            return load(self._data, "train", self._fault)

    @cached_property
    def test(self) -> ImageSet:
        with self.ranks.first_alone():
            return mixed(load(self._data, "test", self._fault))

    def test_batch(self, rows: range) -> tuple[Tensor, list[str]]:
        """Some test images (n, c, h, w) uint8, with the first caption of each."""
        labels = self.test.labels[rows.start : rows.stop].tolist()
        captions = [self.test.captions[label][0] for label in labels]
        return self.test.images[rows.start : rows.stop], captions

    @cached_property
    def prompts(self) -> list[tuple[str, int]]:
        """Every caption that was trained on, with the class that it asks for, 0 without classes."""
        captions, classes = self.train.captions, self.train.classes
        of_label = [0] * len(captions) if classes is None else classes.of_label.tolist()
        return [(one, of) for ways, of in zip(captions, of_label, strict=True) for one in ways]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.classes.names if self.train.classes else ()

    @cached_property
    def classifier(self) -> Classifier:
        data = self.train, self.test
        with self.ranks.first_alone():
            return trained_classifier(*data, self._each_step)

    @cached_property
    def train_features(self) -> Tensor:
        """(n, d)"""
        return self.classifier.classify(self.train.images)[0]

    @cached_property
    def test_features(self) -> Tensor:
        """(m, d)"""
        return self.classifier.classify(self.test.images)[0]


@dataclass(frozen=True)
class Settings:
    """What an evaluation draws, and how much of each thing it looks at."""

    num_samples: int = 1000
    steps: int = 20
    guidance: float = 2.0
    solver: str = "euler"
    seed: int = 0
    validation_images: int = 1000  # of the test images, for the validation loss
    trajectories: int = 200  # followed for the straightness
    sweep_samples: int = 500  # of each setting of the sweep
    sweep_tolerance: float = 0.01  # of prompt accuracy: as good as the best
    sweep_frechet_tolerance: float = 0.1  # of the Fréchet distance, as a share of the smallest
    likelihood_images: int = 100

    @classmethod
    def like(cls, sample: SampleConfig, **given: Any) -> "Settings":
        """The settings of a config's sample section, but for those that are given and not None."""
        usual: dict[str, Any] = sample.model_dump(include={"steps", "guidance", "solver"})
        return cls(**usual | {key: value for key, value in given.items() if value is not None})

    @property
    def drawing(self) -> dict[str, Any]:
        """What a `Sampler` needs to know."""
        return {key: getattr(self, key) for key in ("steps", "guidance", "solver", "seed")}


class Samples:
    """What a model draws for every caption of the reference set equally often, or for as many of
    them as there are samples, evenly spread; drawn when first looked at. A model that is given
    pictures draws test pictures again, each with its first caption, and at most all of them once.
    """

    def __init__(self, sampler: Sampler, reference: Reference, settings: Settings) -> None:
        self.sampler = sampler
        self.pipeline = sampler.pipeline
        self.reference = reference
        self.settings = settings
        self.rows: list[int] = []  # of the test pictures that it is given
        drawn = evenly(reference.prompts, settings.num_samples)
        if self.pipeline.config.model.conditioning != "text":
            test = reference.test
            if not len(test):
                raise UserError("this model draws from test images, and there are none; keep some")
            # Each once: drawn twice, a picture is no second one for an interval.
            n = min(settings.num_samples, len(test))
            self.settings = replace(settings, num_samples=n)
            self.rows = evenly(range(len(test)), n)
            labels = [0] * len(test) if test.classes is None else test.class_labels.tolist()
            ways = [test.captions[label][0] for label in test.labels.tolist()]
            drawn = [(ways[row], labels[row]) for row in self.rows]
        self.prompts = [caption for caption, _ in drawn]
        self.labels = torch.tensor([label for _, label in drawn])  # (n,) classes, as prompted

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def features(self) -> Tensor:
        """The classifier's features, (n, d)."""
        return self._classified[0]

    @property
    def seen(self) -> Tensor:
        """The label that the classifier sees in each picture, (n,)."""
        return self._classified[1]

    @cached_property
    def at_once(self) -> int:
        """How many pictures are measured together."""
        tokens = self.pipeline.image_tokens(self.pipeline.latent_shape)
        return min(BATCH, max(1, TOKENS // tokens))

    @cached_property
    def float32_sampler(self) -> Sampler:
        """Of the same model, for what is measured of its velocity, whatever it draws with."""
        settings = self.sampler.settings.model_copy(update={"precision": "float32"})
        return Sampler(self.pipeline, settings, kernels=self.sampler.kernels)

    def edit_of(self, rows: Sequence[int]) -> Edit | None:
        """How the model draws some test pictures again, where it is given pictures."""
        test, rows = self.reference.test, list(rows)
        references = None if test.references is None else test.references[rows]
        conditioning = self.pipeline.config.model.conditioning
        return held_out_edit(conditioning, test.images[rows], references, self.settings.seed, rows)

    def image_condition(self, rows: Sequence[int]) -> ImageCondition | None:
        """What the model sees of these test pictures, beside noise."""
        edit = self.edit_of(rows)
        if edit is None:
            return None
        edit = edit.on(self.pipeline.device)
        return self.pipeline.image_condition(edit.image, edit.hole)

    def draw(
        self, prompts: Sequence[str], first_index: int, on_step: OnStep | None = None
    ) -> Tensor:
        """Pictures (n, c, h, w) of any prompts by these settings, from the noise that is addressed
        by `first_index` on, and from the test pictures of as many samples, where the model is given
        some."""
        where: dict[str, Any] = {"first_index": first_index, "batch_size": self.at_once}
        if self.rows:
            where["edit"] = self.edit_of(self.rows[first_index : first_index + len(prompts)])
        return self.sampler.generate(prompts, on_step=on_step, **where, **self.settings.drawing)

    @cached_property
    def pictures(self) -> Tensor:
        """(n, c, h, w) uint8, in a file that vanishes with this object."""
        config = self.pipeline.config.data
        shape = (len(self), config.channels, config.image_size, config.image_size)
        with tempfile.TemporaryFile() as file:  # the mapping keeps it alive after closing
            if hasattr(os, "posix_fallocate"):  # else a full disk would end the process
                with explaining(
                    f"can't keep {len(self):,} samples", "; set TMPDIR to a larger disk"
                ):
                    os.posix_fallocate(file.fileno(), 0, math.prod(shape))
            pictures = torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="w+", shape=shape))
        batches = self.drawn(self.prompts, 0)
        starts = range(0, len(self), self.at_once)
        for start, drawn in zip(
            track(starts, "drawing samples", transient=True), batches, strict=True
        ):
            pictures[start : start + len(drawn)] = drawn
        return pictures

    def drawn(self, prompts: Sequence[str], first_index: int) -> Iterator[Tensor]:
        """The same as `draw`, as uint8, in batches that the ranks share."""

        def batch(rows: range) -> Tensor:
            return to_uint8(self.draw(prompts[rows.start : rows.stop], first_index + rows.start))

        return self.reference.shared(in_batches(len(prompts), self.at_once), batch, guided=True)

    def measured(
        self, count: int, size: int, work: Callable[[range], Done], guided: bool = False
    ) -> list[Done]:
        """What `work` finds of so many rows, in batches of a size, which the ranks share."""
        return [*self.reference.shared(in_batches(count, size), work, guided)]

    @cached_property
    def _classified(self) -> tuple[Tensor, Tensor]:
        """Features and labels; the pictures stay in their file until their turn."""
        return self.reference.classifier.classify(self.pictures)


def mixed(data: ImageSet) -> ImageSet:
    """The same in an order that has an address, where it comes sorted by label, as folders do: the
    first images are to stand for all."""
    labels = data.labels
    shares = labels.unique(return_counts=True)[1] / max(1, len(labels))
    by_chance = 1 - shares.square().sum()  # of neighbours that differ
    if len(labels) < 2 or (labels[1:] != labels[:-1]).float().mean() > by_chance / 2:
        return data
    order = torch.randperm(len(labels), generator=generator(0, "order of test images"))
    references = None if data.references is None else data.references[order]
    return replace(data, images=data.images[order], labels=labels[order], references=references)


def in_batches(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
