"""Pictures that are given to a model beside the noisy one, as its network sees them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxsmith.autoencoder import Autoencoder


@dataclass(frozen=True)
class ImageCondition:
    """What the network sees of pictures that are given to it, beside the noisy one."""

    channels: Tensor | None = None  # (b or 1, k, h, w): of a fill model, more channels of x
    reference: Tensor | None = None  # (b or 1, c, h', w'): of a kontext model, more image tokens

    def repeated(self, times: int) -> "ImageCondition":
        """For a batch that holds each picture so many times, one batch after the other."""
        return ImageCondition(
            *(
                part if part is None or len(part) == 1 else part.repeat(times, 1, 1, 1)
                for part in (self.channels, self.reference)
            )
        )


def image_condition(
    kind: str, autoencoder: Autoencoder, images: Tensor, mask: Tensor | None
) -> ImageCondition | None:
    """What a model of this `model.conditioning` sees of pictures (b, c, H, W) in [-1, 1].

    text: nothing. fill, as FLUX.1 Fill: the latents of a picture with its hole in middle grey, and
    the pixels of the `mask` (b, 1, H, W), 1 in the hole, as channels of their latent. kontext, as
    FLUX.1 Kontext: the latents.
    """
    if kind == "text":
        return None
    if kind == "kontext":
        return ImageCondition(reference=autoencoder.encode(images))
    assert mask is not None, "a fill model needs a mask"
    kept = autoencoder.encode(images * (1 - mask))
    pixels = F.pixel_unshuffle(mask, autoencoder.factor)  # (b, f f, h, w)
    b = max(len(kept), len(pixels))
    each = (part.expand(b, -1, -1, -1) for part in (kept, pixels))
    return ImageCondition(channels=torch.cat([*each], dim=1))
