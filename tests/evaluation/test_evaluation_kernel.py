"""The kernel distance against its definition and exact moments."""

import pytest
import torch
from evaluation_models import covered, normal

from fluxsmith.evaluation.evaluators.feature_distance import kernel_distance


def by_definition(x, y):
    def k(a, b):
        return (a @ b / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return float(xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m))


def test_the_definition():
    x, y = normal(9, 3), normal(7, 3, seed=1) + 0.5
    assert kernel_distance(x, y).value == pytest.approx(by_definition(x, y), rel=1e-12)


def test_no_bias_between_equal_distributions():
    """400 draws of 8 rows each: the mean is 0 within 4 standard errors, and signs are mixed."""
    found = torch.tensor([kernel_distance(*normal(2, 8, 2, seed=s)).value for s in range(400)])
    assert abs(found.mean()) < 4 * found.std() / 20
    assert 100 < (found < 0).sum() < 350


def moments_distance(mean):
    """For d = 1, (xy + 1)^3 = 1 + 3xy + 3x²y² + x³y³, so the distance is the sum over powers of
    (3 choose p)(E x^p - E y^p)^2; of N(mean, 1) against N(0, 1)."""
    first, second, third = mean, 1 + mean**2 - 1, mean**3 + 3 * mean
    return 3 * first**2 + 3 * second**2 + third**2


def test_exact_moments_and_coverage_in_one_dimension():
    """Unbiased within 4 standard errors, and the interval covers the truth in 90% to 99%."""
    truth = moments_distance(0.5)
    found = [
        kernel_distance(normal(500, 1, seed=s) + 0.5, normal(500, 1, seed=s + 9999))
        for s in range(200)
    ]
    values = torch.tensor([each.value for each in found])
    assert abs(values.mean() - truth) < 4 * values.std() / 200**0.5
    assert 180 <= covered(found, truth) <= 198


def test_the_interval_is_the_jackknife():
    """Against leaving every row out by hand."""
    x, y = normal(8, 2), normal(6, 2, seed=1)

    def spread(values):
        values = torch.tensor(values, dtype=torch.float64)
        return (len(values) - 1) * values.var(correction=0)

    out_x = [kernel_distance(torch.cat([x[:i], x[i + 1 :]]), y).value for i in range(8)]
    out_y = [kernel_distance(x, torch.cat([y[:i], y[i + 1 :]])).value for i in range(6)]
    found = kernel_distance(x, y)
    margin = 1.959964 * float((spread(out_x) + spread(out_y)).sqrt())
    assert found.high - found.value == pytest.approx(margin, rel=1e-6)
    assert found.value - found.low == pytest.approx(margin, rel=1e-6)
