"""What a prediction of the velocity is worth that knows nothing of pictures but their variance."""

import torch
from torch import Tensor


def linear_loss(variance: Tensor, t: Tensor) -> Tensor:
    """The loss of the best prediction of each pixel's velocity that is linear in that pixel of x_t,
    at times t (n,): (n,). `variance` (c, h, w) is the data's, pixel by pixel.

    The linear minimum mean squared error, var v - cov(v, x_t)^2 / var x_t (Kay 1993, sec. 12.3),
    with v = eps - x0 and x_t = (1 - t) x0 + t eps, is s^2 / ((1 - t)^2 s^2 + t^2) for a pixel of
    variance s^2: 1 at t = 0, where the noise can't be seen, and s^2 at t = 1, where the mean
    picture is all that can be said. The best constant's is 1 + s^2 at every t.
    """
    s2, t = variance.flatten(), t[:, None]
    below = (1 - t).square() * s2 + t.square()
    # 0 / 0 at t = 0 for a pixel that is always the same, whose noise can't be seen there either
    return torch.where(t > 0, s2 / below, 1.0).mean(1)
