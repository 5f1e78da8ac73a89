import math

import numpy as np
import pytest
from scipy import stats

from pipelines.comparison.blocks import TERMS, block_mean


def test_the_standard_error_is_that_of_the_formula():
    """The equal-weighted cosine estimator of residuals without correlation, term by term."""
    totals, n = [3.0, -1.0, 2.0, -2.0, 0.5, -2.5, 1.0, -1.0, 3.5, -1.5], 10
    found = block_mean(totals, [2] * n)
    mean = sum(totals) / 20
    projections = [
        math.sqrt(2 / n)
        * sum((x - 2 * mean) * math.cos(math.pi * j * (t + 0.5) / n) for t, x in enumerate(totals))
        for j in range(1, TERMS + 1)
    ]
    variance = sum(x**2 for x in projections) / TERMS
    assert found.correlation < 0  # so that nothing is corrected
    assert found.mean == pytest.approx(mean)
    assert found.standard_error == pytest.approx(math.sqrt(variance / n) / 2)
    bound = found.mean - stats.t.ppf(0.95, TERMS) * found.standard_error
    assert found.lower_bound(0.95) == pytest.approx(bound)


def test_the_variance_of_correlated_blocks_is_corrected():
    """By the spectrum of a first-order autoregression at the frequencies of the cosines."""
    (values,) = autoregression(np.random.default_rng(3), 0.8, 60, 1)
    found, centred = block_mean(values, [1] * 60), values - values.mean()
    rho = float(centred[1:] @ centred[:-1] / (centred @ centred))
    rho += (1 + 4 * rho) / 60
    assert found.correlation == pytest.approx(rho) and 0.5 < rho < 0.97
    variances, shares = [], []
    for j in range(1, TERMS + 1):
        cosine = np.cos(np.pi * j * (np.arange(60) + 0.5) / 60)
        variances.append(2 / 60 * float(cosine @ centred) ** 2)
        shares.append((1 - rho) ** 2 / abs(1 - rho * np.exp(1j * np.pi * j / 60)) ** 2)
    expected = math.sqrt(np.mean(variances) / np.mean(shares) / 60)
    assert found.standard_error == pytest.approx(expected)


def test_the_mean_is_per_byte_and_blocks_of_other_sizes_weigh_by_them():
    found = block_mean([1.0, 4.0, 9.0], [10, 20, 30])
    assert found.mean == pytest.approx(14 / 60)
    same = block_mean([0.5 * size for size in (409, 410, 409, 410)], [409, 410, 409, 410])
    assert (same.mean, same.standard_error) == pytest.approx((0.5, 0.0))


def test_what_does_not_vary_has_itself_as_bound():
    found = block_mean([2.0] * 40, [4] * 40)
    assert (found.mean, found.standard_error, found.correlation) == (0.5, 0.0, 0.0)
    assert found.lower_bound(0.99) == 0.5


def test_few_blocks_have_fewer_terms_and_one_has_none():
    assert block_mean([1.0, 2.0, 4.0], [1, 1, 1]).degrees_of_freedom == 2
    with pytest.raises(ValueError, match="expected at least 2"):
        block_mean([1.0], [1])


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.85])
def test_the_correlation_of_neighbours_is_found_without_bias(rho):
    values = autoregression(np.random.default_rng(0), rho, 147, 300)
    found = [block_mean(row, [1] * 147).correlation for row in values]
    assert np.mean(found) == pytest.approx(rho, abs=0.02)


def autoregression(rng: np.random.Generator, rho: float, blocks: int, count: int) -> np.ndarray:
    values = rng.standard_normal((count, blocks))
    values[:, 0] /= math.sqrt(1 - rho**2)
    for t in range(1, blocks):
        values[:, t] += rho * values[:, t - 1]
    return values
