"""The data: where the images come from, and what the model sees of them."""

from typing import Literal

from pydantic import model_validator

from fluxsmith.config.kinds import KindSection
from fluxsmith.config.types import Pixels, Share


class DataConfig(KindSection):
    NAME = "data"
    CHOOSER = "source"
    REGISTRY = "fluxsmith.data.sources:SOURCES"

    source: str
    """The data set: digits (embedded), mnist, colored-digits, folder, hf or webdataset."""
    image_size: Pixels = 32
    """Height and width of the images that the model sees, in pixels."""
    channels: Literal[1, 3] = 1
    """1 for grey, 3 for RGB; any source is converted."""
    resize: Literal["pad", "center-crop", "random-crop", "stretch"] = "pad"
    """How images reach image_size: pad with black, cut the longer side, or stretch."""
    flip: bool = False
    """Mirror half of the images, left to right. Wrong for digits and letters."""
    caption_dropout: Share = 0.1
    """Share of captions replaced by the empty prompt, which guidance needs."""

    @model_validator(mode="after")
    def _crops_are_cut_anew(self) -> "DataConfig":
        if self.resize == "random-crop" and getattr(self, "in_memory", None) is True:
            raise ValueError(
                "data.in_memory=True: data.resize=random-crop cuts anew each epoch, from images on "
                "disk; remove the key or use center-crop"
            )
        return self
