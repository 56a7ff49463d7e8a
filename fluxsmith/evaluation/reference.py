"""The data that a model is measured against, and the judge made from it, each loaded when it is
first needed."""

from functools import cached_property

import torch
from torch import Tensor

from fluxsmith.config import RunConfig
from fluxsmith.data import load
from fluxsmith.data.images import Split, to_unit
from fluxsmith.data.imageset import ImageSet
from fluxsmith.evaluation.judge import Judge, data_digest, trained_judge


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
        data = self._data
        return load(
            data.source,
            data.path,
            split,
            image_size=data.image_size,
            channels=data.channels,
            resize=data.resize,
        )
