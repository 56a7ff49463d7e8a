"""The linear layers of the network, and the activation that follows them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxsmith.model import onednn

# 2 u = 2 sqrt(2/pi) (x + 0.044715 x^3)
_GELU_1 = 2 * math.sqrt(2 / math.pi)
_GELU_3 = 0.044715 * _GELU_1


class Linear(nn.Linear):
    """A linear layer, multiplied by the quicker of the libraries that torch has."""

    def forward(self, x: Tensor) -> Tensor:
        return self.pieces(x, self.out_features)[0]

    def gelu(self, x: Tensor) -> Tensor:
        """The layer with GELU after it."""
        return self.pieces(x, self.out_features, gelu=True)[0]

    def pieces(self, x: Tensor, *sizes: int, gelu: bool = False) -> tuple[Tensor, ...]:
        """The layer's output in pieces (..., size), cut on the last axis; GELU on the last one."""
        by_onednn = onednn.worth_it(x, self.weight)
        if by_onednn and not torch.is_grad_enabled():
            return onednn.linear(x, self.weight, self.bias, sizes, gelu)
        if by_onednn:
            pieces = onednn.differentiable_linear(x, self.weight, self.bias, sizes)
        else:
            pieces = F.linear(x, self.weight, self.bias).split(sizes, dim=-1)
        return (*pieces[:-1], _gelu(pieces[-1])) if gelu else pieces

    def joined(self, *xs: Tensor) -> Tensor:
        """The layer on what `xs` are side by side on the last axis."""
        if not torch.is_grad_enabled() and onednn.worth_it(xs[0], self.weight):
            return onednn.joined_linear(xs, self.weight, self.bias)
        return self(torch.cat(xs, dim=-1))


def _gelu(x: Tensor) -> Tensor:
    """The tanh form of GELU (Hendrycks & Gimpel 2016, sec. 2), x (1 + tanh u) / 2.

    Compiled, it is written as x sigmoid(2 u), which is the same and costs half as much, since
    compilers take tanh from a library and have an exponential of their own.
    """
    if not torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    return x * torch.sigmoid(x * (_GELU_1 + _GELU_3 * x * x))
