"""The straight path between data and noise, and the loss of the velocity along it.

Rectified flow: Liu et al. 2022, "Flow Straight and Fast", eq. 1; the direction of time is that of
Esser et al. 2024, "Scaling Rectified Flow Transformers", eq. 13.
"""

from collections.abc import Callable

import torch
from torch import Tensor

LEAST_TIME = 0.05  # that data predictions are divided by
NO_TIME = 1e-4  # up to which x_t can have come of one picture alone

# (x_t (b, c, h, w), t (b,) or scalar) -> v (b, c, h, w)
Velocity = Callable[[Tensor, Tensor], Tensor]


def interpolate(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t eps: the data at t = 0, the noise at t = 1. `t` is (b,) or a scalar."""
    t = beside(t, x0)
    return (1 - t) * x0 + t * eps


def velocity_target(x0: Tensor, eps: Tensor) -> Tensor:
    """v = d x_t / dt = eps - x0, the same all along the path."""
    return eps - x0


def flow_matching_loss(velocity: Velocity, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """The squared error of the predicted velocity, averaged over each image: (b,), in float32.

    Liu et al. 2022, eq. 1: min_v E ||(eps - x0) - v(x_t, t)||^2.
    """
    x_t = interpolate(x0, eps, t)
    v = velocity_target(x0, eps)
    error = velocity(x_t, t).float() - v.float()
    return error.square().flatten(1).mean(1)


def posterior_mean(x0: Tensor, eps: Tensor, t: Tensor, others: Tensor) -> Tensor:
    """The mean of the data that x_t = (1 - t) x0 + t eps may have come of: x0 or any of `others`
    (n, c, h, w), all as likely beforehand: (b, c, h, w).

    Xu, Tong & Jaakkola 2023, "Stable Target Field for Reduced Variance Score Estimation in
    Diffusion Models", with the weights of this path, N(x_t; (1 - t) x_i, t^2). Where x0 and the
    others are drawn alike its expectation, given x_t, is that of x0: whatever their number, it has
    the same mean and less variance.
    """
    times, each = t.view(-1, 1).clamp(min=NO_TIME), others.flatten(1)  # (b, 1), (n, d)
    x_t, own = interpolate(x0, eps, t).flatten(1), x0.flatten(1)  # (b, d)
    near = x_t @ each.T - (1 - times) / 2 * torch.linalg.vector_norm(each, dim=1) ** 2  # (b, n)
    nearest = (x_t * own).sum(1, keepdim=True) - (1 - times) / 2 * own.square().sum(1, keepdim=True)
    weights = (torch.cat((nearest, near), dim=1) * (1 - times) / times**2).softmax(1)
    return (weights[:, :1] * own + weights[:, 1:] @ each).view_as(x0)


def x0_from_velocity(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The data end of the straight line through x_t with velocity v."""
    return x_t - beside(t, x_t) * v


def velocity_from_x0(x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """The velocity of the straight line from data x0 through x_t, for a network that predicts data.

    Li & He 2025, "Back to Basics: Let Denoising Generative Models Denoise", eq. 6 and its clamp of
    the time: below t = 0.05 division by t would blow up errors of x0, so what is predicted there is
    x_t - 0.05 v.
    """
    return (x_t - x0) / beside(t, x_t).clamp(min=LEAST_TIME)


def eps_from_velocity(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The noise end of the straight line through x_t with velocity v."""
    return x_t + (1 - beside(t, x_t)) * v


def beside(t: Tensor, x: Tensor) -> Tensor:
    """`t` shaped to broadcast over everything but the batch. A (b,) tensor against (b, c, h, w)
    would otherwise line up with the width, silently wherever b = w."""
    if t.ndim == 0:
        return t
    if t.shape != x.shape[:1]:
        raise ValueError(f"t has shape {tuple(t.shape)}; a batch of {x.shape[0]} needs () or (b,)")
    return t.view(-1, *[1] * (x.ndim - 1))
