"""What a data set is read by: the settings of a config's data section, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Split = Literal["train", "test"]


@dataclass(frozen=True)
class DataSettings:
    """The source, what the model sees of it, and how it is read; `options` go to the source."""

    source: str
    path: str | None = None
    image_size: int = 32
    channels: int = 1
    resize: str = "pad"  # pad, stretch, center-crop or random-crop
    flip: bool = False
    caption_dropout: float = 0.0
    max_bad: float = 0.01  # the share of images that may be unreadable
    in_memory: bool | Literal["auto"] = "auto"
    workers: int = 2  # threads that decode
    shuffle_buffer: int = 1000  # images of a stream that are shuffled together
    options: Mapping[str, Any] = field(default_factory=dict)
