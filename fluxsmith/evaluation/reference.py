"""The data that a model is measured against, and the judge made from it, each loaded when it is
first needed."""

from functools import cached_property

import torch
from torch import Tensor

from fluxsmith.config import RunConfig
from fluxsmith.data import load
from fluxsmith.data.images import to_unit
from fluxsmith.data.imageset import ImageSet
from fluxsmith.data.settings import Split
from fluxsmith.evaluation.judge import Judge, class_count, data_digest, trained_judge


class Reference:
    """The training and test images of a config's data set, as its model sees them."""

    def __init__(self, config: RunConfig) -> None:
        self._data = config.data

    @cached_property
    def train(self) -> ImageSet:
        return self._load("train")

    @cached_property
    def test(self) -> ImageSet:
        return self._load("test")

    @cached_property
    def prompts(self) -> list[tuple[str, int]]:
        """Every caption that was trained on, with the class that it asks for, 0 without classes."""
        captions, classes = self.train.captions, self.train.classes
        of_label = [0] * len(captions) if classes is None else classes.of_label.tolist()
        pairs = zip(captions, of_label, strict=True)
        return [(caption, label) for ways, label in pairs for caption in ways]

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        class_count(self.train)  # refuses a set without any
        return self.train.classes.names if self.train.classes else ()

    @cached_property
    def digest(self) -> str:
        """Of every image and label."""
        return data_digest(self.train, self.test)

    @cached_property
    def judge(self) -> Judge:
        return trained_judge(self.train, self.test)

    @cached_property
    def train_features(self) -> Tensor:
        """(n, d)"""
        return self._features(self.train)

    @cached_property
    def test_features(self) -> Tensor:
        """(m, d)"""
        return self._features(self.test)

    def _features(self, data: ImageSet) -> Tensor:
        parts = data.images.split(500)
        return torch.cat([self.judge.look(to_unit(part))[0] for part in parts])

    def _load(self, split: Split) -> ImageSet:
        return load(self._data.settings(), split)
