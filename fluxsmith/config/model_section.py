"""What a model is made of: the text encoder, the autoencoder and the network's sizes."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from fluxsmith.config.kinds import KindSection
from fluxsmith.config.types import Count, Layers, Pixels, Positive, Section, Width, check_divisible


class TextConfig(KindSection):
    NAME = "text"
    CHOOSER = "encoder"
    REGISTRY = "fluxsmith.text:ENCODERS"
    DEFAULT = "bytes"

    encoder: str
    """bytes, learned with the model; clip_t5, FLUX.1's two; transformers, any one pretrained."""


class AutoencoderConfig(KindSection):
    NAME = "autoencoder"
    CHOOSER = "kind"
    REGISTRY = "fluxsmith.autoencoder:AUTOENCODERS"
    DEFAULT = "pixel"
    UNSET: ClassVar[tuple[Any, ...]] = (None, 0)

    kind: str
    """What the flow runs on: pixel, images themselves; flux, latents of FLUX.1's autoencoder."""


class ModelConfig(Section):
    patch_size: Pixels = 8
    """An image token covers patch_size x patch_size pixels."""
    hidden_size: Width = 384
    """Width of the network; num_heads heads of hidden_size / num_heads."""
    num_heads: Width = 6
    """Attention heads."""
    depth: Layers = 6
    """Dual-stream blocks: text and image with weights of their own."""
    depth_single_blocks: Layers = 12
    """Single-stream blocks over text and image together."""
    axes_dim: list[Count] = Field(default=[16, 24, 24], min_length=3, max_length=3)
    """Channels of a head that the rotary embedding gives to (index, row, column)."""
    mlp_ratio: Annotated[float, Field(gt=0, le=1000)] = 4.0
    """Inner width of the MLPs, in multiples of hidden_size."""
    theta: Positive = 10000.0
    """Base of the rotary frequencies."""
    qkv_bias: bool = True
    """Whether the query, key and value projections of dual-stream blocks have a bias."""
    guidance_embed: bool = False
    """Whether the network takes the guidance scale as an input; plain training feeds it 1."""
    conditioning: Literal["text", "fill", "kontext"] = "text"
    """What it is given: text alone; fill, also a picture with a hole; kontext, also a reference."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ModelConfig":
        hidden, heads = self.hidden_size, self.num_heads
        check_divisible("model.hidden_size", hidden, "model.num_heads", heads)
        if sum(self.axes_dim) != hidden // heads:
            raise ValueError(
                f"model.axes_dim={self.axes_dim}: sums to {sum(self.axes_dim)}; must sum to the "
                f"head size, model.hidden_size / model.num_heads = {hidden // heads}"
            )
        if any(width % 2 for width in self.axes_dim):
            raise ValueError(f"model.axes_dim={self.axes_dim}: each must be even")
        return self
