"""The kernel distance (KID) between the features of samples and of data: unlike the Fréchet
distance it has no bias, so that a few hundred samples say something."""

from torch import Tensor

from fluxsmith.evaluation.frechet import as_rows
from fluxsmith.evaluation.statistics import Estimate, normal_quantile

BLOCK = 1024  # rows of a block: 8 MiB of kernel values at a time


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """The unbiased squared maximum mean discrepancy of features (n, d) and (m, d).

    The U-statistic of Gretton et al. 2012, eq. 3, with the kernel k(x, y) = (x.y/d + 1)^3 of
    Bińkowski et al. 2018, section 4. It is below 0 about as often as above for equal
    distributions. ValueError below three rows.
    """
    return kernel_interval(a, b).value


def kernel_interval(a: Tensor, b: Tensor, level: float = 0.95) -> Estimate:
    """`kernel_distance` with an interval, which covers the chance in both sets of rows.

    The jackknife: each row left out in turn, which the row sums of the kernel give in closed form,
    so nothing is drawn and n^2 values are enough. Its variance errs upwards (Efron & Stein 1981),
    by a factor near 2 where the distributions are equal. The ends may be below 0, as may the value.
    Normal: for a few hundred rows of heavy-tailed features the upper end comes too low.
    """
    x, y = as_rows(a), as_rows(b)
    if min(len(x), len(y)) < 3 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"features of shapes {tuple(x.shape)} and {tuple(y.shape)}; "
            "three rows or more of one width are needed"
        )
    xx, yy = _own_sums(x), _own_sums(y)
    xy, yx = _cross_sums(x, y)
    n, m = len(x), len(y)
    within_x, within_y = xx.sum() / (n * (n - 1)), yy.sum() / (m * (m - 1))
    value = float(within_x + within_y - 2 * xy.sum() / (n * m))
    # What the distance is without row i, up to what doesn't depend on i. (n,), (m,)
    without_x = (xx.sum() - 2 * xx) / ((n - 1) * (n - 2)) + 2 * xy / ((n - 1) * m)
    without_y = (yy.sum() - 2 * yy) / ((m - 1) * (m - 2)) + 2 * yx / ((m - 1) * n)
    variance = (n - 1) * without_x.var(correction=0) + (m - 1) * without_y.var(correction=0)
    margin = normal_quantile(level) * float(variance.sqrt())
    return Estimate(value, value - margin, value + margin)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """(n, d), (m, d) -> (n, m)."""
    return (x @ y.T).div_(x.shape[1]).add_(1).pow_(3)


def _cross_sums(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of k(x_i, y_j) over j, (n,), and over i, (m,)."""
    rows, columns = x.new_zeros(len(x)), x.new_zeros(len(y))
    for i in range(0, len(x), BLOCK):
        for j in range(0, len(y), BLOCK):
            block = _kernel(x[i : i + BLOCK], y[j : j + BLOCK])
            rows[i : i + BLOCK] += block.sum(1)
            columns[j : j + BLOCK] += block.sum(0)
    return rows, columns


def _own_sums(x: Tensor) -> Tensor:
    """The sums of k(x_i, x_j) over j != i: (n,). Symmetric, so half of the blocks will do."""
    sums = x.new_zeros(len(x))
    for i in range(0, len(x), BLOCK):
        for j in range(i, len(x), BLOCK):
            block = _kernel(x[i : i + BLOCK], x[j : j + BLOCK])
            sums[i : i + BLOCK] += block.sum(1)
            if j == i:
                sums[i : i + BLOCK] -= block.diagonal()
            else:
                sums[j : j + BLOCK] += block.sum(0)
    return sums
