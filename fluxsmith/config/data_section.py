"""The data: where the images come from, and what the model sees of them."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from fluxsmith.config.kinds import KindSection
from fluxsmith.config.types import Pixels, Share, off

OnOff = Annotated[Literal["auto", "off"], BeforeValidator(off)]


class DataConfig(KindSection):
    NAME = "data"
    CHOOSER = "source"
    REGISTRY = "fluxsmith.data.sources:SOURCES"

    source: str
    """The data set: digits (embedded), mnist, colored-digits, emoji, folder, hf or webdataset."""
    image_size: Pixels = 32
    """Height and width of the images that the model sees, in pixels."""
    channels: Literal[1, 3] = 1
    """1 for grey, 3 for RGB; any source is converted."""
    resize: Literal["pad", "center-crop", "random-crop", "stretch"] = "pad"
    """How images reach image_size: pad with black, cut the longer side, or stretch."""
    buckets: OnOff = "off"
    """auto: each picture in the shape nearest to its own, of image_size squared pixels or less."""
    bucket_step: Pixels = 64
    """Sides of buckets are multiples of this."""
    bucket_aspect: Annotated[float, Field(ge=1, le=64)] = 2.5
    """The most that a bucket's longer side is of its shorter one."""
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

    @model_validator(mode="after")
    def _buckets_fit(self) -> "DataConfig":
        if self.buckets == "off":
            for key in ("bucket_step", "bucket_aspect"):
                if getattr(self, key) != DataConfig.model_fields[key].default:
                    raise ValueError(
                        f"data.{key}={getattr(self, key)}: is for buckets; set data.buckets=auto "
                        f"or remove the key"
                    )
            return self
        if self.resize == "pad":
            raise ValueError(
                "data.resize=pad: would put black bars beside pictures that data.buckets=auto "
                "fits shapes to; set data.resize=center-crop"
            )
        if self.image_size % self.bucket_step:
            fits = [n for n in range(1, self.image_size + 1) if self.image_size % n == 0]
            near = min(fits, key=lambda n: abs(n - self.bucket_step))
            raise ValueError(
                f"data.bucket_step={self.bucket_step}: must divide "
                f"data.image_size={self.image_size}; use {near}"
            )
        return self
