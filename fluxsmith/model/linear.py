"""The linear layers of the network, and the activation that follows them."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxsmith.model import onednn, passes

Pieces = tuple[Tensor, ...]

# 2 u = 2 sqrt(2/pi) (x + 0.044715 x^3)
_GELU_1 = 2 * math.sqrt(2 / math.pi)
_GELU_3 = 0.044715 * _GELU_1


class Linear(nn.Linear):
    """A linear layer, multiplied by the quicker of the libraries that torch has."""

    def forward(self, *xs: Tensor, sizes: tuple[int, ...] | None = None, gelu: bool = False) -> Any:
        """The layer on what `xs` are side by side, (..., k) together -> (..., n).

        With `sizes`, which add up to n, a tuple of the pieces (..., size) of that. `gelu` applies
        GELU to the output, or to the last piece of it.
        """
        lengths = (self.out_features,) if sizes is None else sizes
        pieces = self._pieces(xs, lengths, gelu)
        return pieces[0] if sizes is None else pieces

    def _pieces(self, xs: tuple[Tensor, ...], sizes: tuple[int, ...], gelu: bool) -> Pieces:
        by_onednn = onednn.worth_it(xs, self.weight)
        if by_onednn and not torch.is_grad_enabled():
            if len(xs) > 1 and len(sizes) == 1 and not gelu:
                return (onednn.joined_linear(xs, self.weight, self.bias),)
            return onednn.linear(_side_by_side(xs), self.weight, self.bias, sizes, gelu)
        x = _side_by_side(xs)
        if by_onednn:
            inside = gelu and passes.serve(x, sizes)
            pieces = onednn.differentiable_linear(x, self.weight, self.bias, sizes, inside)
            gelu = gelu and not inside
        else:
            y = F.linear(x, self.weight, self.bias)
            pieces = (y,) if len(sizes) == 1 else y.split(sizes, dim=-1)
        return (*pieces[:-1], _gelu(pieces[-1])) if gelu else pieces


def _side_by_side(xs: tuple[Tensor, ...]) -> Tensor:
    return xs[0] if len(xs) == 1 else torch.cat(xs, dim=-1)


def _gelu(x: Tensor) -> Tensor:
    """The tanh form of GELU (Hendrycks & Gimpel 2016, sec. 2), x (1 + tanh u) / 2.

    Compiled, it is written as x sigmoid(2 u), which is the same and costs half as much, since
    compilers take tanh from a library and have an exponential of their own.
    """
    if not torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    return x * torch.sigmoid(x * (_GELU_1 + _GELU_3 * x * x))
