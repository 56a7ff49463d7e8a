"""Drawing from pictures: image-to-image and inpainting by any model, and what a fill or a kontext
model is given."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fluxsmith.data.images import Shape, to_uint8, to_unit
from fluxsmith.errors import UserError
from fluxsmith.randomness import generator
from fluxsmith.sampling.masks import random_masks

STRENGTH = 0.6  # where a model sees nothing of a picture but what is left under the noise


@dataclass(frozen=True)
class Edit:
    """Pictures to draw from, one for all or one for each that is drawn.

    A model of text alone begins with them, noised as far as `strength` says. A fill model sees them
    around the mask as well. A kontext model takes them as references, of any size, and starts from
    noise. With a mask, what it keeps stays as it is.
    """

    image: Tensor  # (c, H, W) or (n, c, H, W) in [-1, 1]
    strength: float | None = None  # above 0; 1 leaves nothing of the picture; None: as is usual
    mask: Tensor | None = None  # (1, H, W) or (n, 1, H, W): 1 is drawn anew, 0 kept

    def check(self, conditioning: str, size: Shape, n: int) -> None:
        """Raises a UserError where a model can't draw n pictures of this size from this."""
        if self.strength is not None and not 0 < self.strength <= 1:
            raise UserError(f"strength={self.strength}: must lie above 0 and at most at 1")
        if conditioning == "fill" and self.mask is None:
            raise UserError("this model fills holes (model.conditioning=fill): give a --mask too")
        if conditioning == "kontext":
            for name, value in (("mask", self.mask), ("strength", self.strength)):
                if value is not None:
                    raise UserError(
                        f"--{name}: this model edits a whole picture (model.conditioning=kontext); "
                        f"leave it out"
                    )
        for name, tensor in (("image", self.image), ("mask", self.mask)):
            if tensor is None:
                continue
            if tensor.ndim == 4 and len(tensor) != n:
                raise UserError(f"{len(tensor)} {name}s for {n} pictures; give one for all or each")
            if conditioning != "kontext" and tuple(tensor.shape[-2:]) != size:
                height, width = tensor.shape[-2:]
                raise UserError(
                    f"the {name} has {height}x{width} pixels and the picture {size[0]}x{size[1]}; "
                    f"make them equal"
                )

    def at(self, rows: Sequence[int]) -> "Edit":
        """That of some of the pictures that are drawn."""
        return self._each(lambda tensor: tensor if tensor.ndim == 3 else tensor[list(rows)])

    def on(self, device: torch.device) -> "Edit":
        """Its tensors, (n or 1, c, H, W), on the device."""
        return self._each(lambda tensor: tensor.view(-1, *tensor.shape[-3:]).to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Edit":
        mask = None if self.mask is None else change(self.mask)
        return replace(self, image=change(self.image), mask=mask)

    @property
    def hole(self) -> Tensor | None:
        """1 wherever something is drawn anew, however little of it shows."""
        return None if self.mask is None else (self.mask > 0).to(self.image)

    def pasted(self, drawn: Tensor) -> Tensor:
        """What was drawn (b, c, H, W), where the mask says so, in the picture itself."""
        return drawn if self.mask is None else self.mask * drawn + (1 - self.mask) * self.image

    @property
    def digest(self) -> str:
        """Names the picture and the mask."""
        found = hashlib.sha256()
        for tensor in (self.image, self.mask):
            if tensor is not None:
                found.update(tensor.contiguous().numpy().tobytes())
        return found.hexdigest()[:16]


def strength_of(edit: Edit, conditioning: str) -> float:
    """How much of the way from noise is left to a drawing."""
    return edit.strength or (STRENGTH if conditioning == "text" else 1.0)


def held_out_edit(
    conditioning: str, images: Tensor, references: Tensor | None, seed: int, indices: Sequence[int]
) -> Edit | None:
    """How test pictures (n, c, H, W) uint8 are drawn again by a model that is given pictures: a
    fill model sees each around a mask addressed by (seed, index), a kontext model sees its
    reference. None for a model of text alone."""
    if conditioning == "text":
        return None
    if conditioning == "kontext":
        if references is None:
            raise UserError(
                "model.conditioning=kontext: the data has no reference pictures; name their column "
                "in data.reference_key"
            )
        return Edit(to_unit(references))
    height, width = images.shape[2:]
    draws = (generator(seed, "mask", index) for index in indices)
    masks = [random_masks(1, height, width, draw) for draw in draws]
    return Edit(to_unit(images), mask=torch.cat(masks))


def before_and_after(
    edit: Edit | None, drawn: Tensor, captions: Sequence[str]
) -> tuple[Tensor, Sequence[str]]:
    """What a grid shows: pictures (n, c, H, W) uint8 with their captions, each after the one that
    it was drawn from, its hole in grey, if there is one."""
    if edit is None:
        return drawn, captions
    given = edit.image if edit.hole is None else edit.image * (1 - edit.hole)
    before = to_uint8(given.expand(len(drawn), -1, -1, -1))
    pairs = torch.stack((before, drawn), dim=1).flatten(0, 1)  # (2n, c, H, W)
    return pairs, [text for caption in captions for text in ("from", caption)]
