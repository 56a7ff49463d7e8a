"""Drawing from a picture in place of noise alone."""

from dataclasses import dataclass

from torch import Tensor

from fluxsmith.errors import UserError


@dataclass(frozen=True)
class Edit:
    """A picture to begin with: it is noised as far as `strength` says and drawn anew from there,
    where `mask` is 1 if there is one."""

    image: Tensor  # (c, H, W) in [-1, 1]
    strength: float = 0.6  # above 0; 1 leaves nothing of the picture
    mask: Tensor | None = None  # (1, H, W): 1 is drawn anew, 0 kept


def check_edit(edit: Edit, size: tuple[int, int] | None) -> None:
    """Raises a UserError for an edit that can't be made."""
    if not 0 < edit.strength <= 1:
        raise UserError(f"strength={edit.strength}: must lie above 0 and at most at 1")
    for name, tensor in (("image", edit.image), ("mask", edit.mask)):
        if tensor is not None and size is not None and tuple(tensor.shape[1:]) != size:
            raise UserError(
                f"the {name} has {tensor.shape[1]}x{tensor.shape[2]} pixels and the picture "
                f"{size[0]}x{size[1]}; make them equal"
            )
