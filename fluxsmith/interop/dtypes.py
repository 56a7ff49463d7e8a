"""The dtypes that weights can be asked for in."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fluxsmith.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_dtype(dtype: str | None) -> None:
    """Raises a UserError for a --dtype that there is not."""
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: must be one of {', '.join(DTYPES)}")


def converted(tensors: Mapping[str, Tensor], dtype: str | None) -> dict[str, Tensor]:
    """In the dtype asked for, or as they are."""
    if dtype is None:
        return dict(tensors)
    return {name: tensor.to(DTYPES[dtype]) for name, tensor in tensors.items()}
