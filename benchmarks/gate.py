"""How often the gate promotes a model that is no better, and one that is, by simulation.

python -m benchmarks.gate [--comparisons 4000] [--blocks 147]

The differences between two models are a first-order autoregression over the blocks of the test
text, with each correlation of neighbours; in the last row those of real models that differ in their
seed alone (residuals.py). The table goes to stdout as Markdown.
"""

import argparse
import math
from typing import NamedTuple

import numpy as np

from benchmarks.residuals import residuals
from pipelines.comparison.blocks import block_mean
from pipelines.registry.config import PromoteConfig

CORRELATIONS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9)
GAIN_ERRORS = 2
"""The gain whose power is printed, in standard errors of the mean."""


class Rates(NamedTuple):
    """Shares of the comparisons in which the gate promotes."""

    false_promotions: float
    """Of models that are no better."""
    power: float
    """Of models that are better by two standard errors."""
    independent: float
    """Of models that are no better, if blocks were taken as independent."""


def rates(correlation: float, blocks: int, comparisons: int, seed: int = 0) -> Rates:
    """Simulate comparisons of equal models, and of a better one, at the gate's confidence."""
    rng = np.random.default_rng(seed)
    draws = autoregressions(rng, correlation, blocks, comparisons)
    return _shares(draws, GAIN_ERRORS * standard_error(correlation, blocks))


def real_rates(blocks: int, comparisons: int, seed: int = 0) -> Rates:
    """The same with differences between real models that differ in their seed alone."""
    draws = real_differences(np.random.default_rng(seed), blocks, comparisons)
    return _shares(draws, GAIN_ERRORS * float(draws.mean(axis=1).std()))


def _shares(draws: np.ndarray, gain: float) -> Rates:
    """What the gate decides about differences without a gain, and with one."""
    confidence, (comparisons, blocks) = PromoteConfig().confidence, draws.shape
    counts = np.zeros(3)
    for values in draws.tolist():
        found = block_mean(values, [1] * blocks)
        bound = found.lower_bound(confidence)
        naive = found.mean - 1.645 * np.std(values, ddof=1) / math.sqrt(blocks)
        counts += np.array([bound > 0, bound + gain > 0, naive > 0])
    return Rates(*(counts / comparisons).tolist())


def autoregressions(
    rng: np.random.Generator, correlation: float, blocks: int, count: int
) -> np.ndarray:
    """First-order autoregressions with mean 0 and steps of variance 1: [count, block]."""
    values = rng.standard_normal((count, blocks))
    values[:, 0] /= math.sqrt(1 - correlation**2)
    for t in range(1, blocks):
        values[:, t] += correlation * values[:, t - 1]
    return values


def real_differences(rng: np.random.Generator, blocks: int, count: int) -> np.ndarray:
    """Stretches, from anywhere in the text, of differences between two models: [count, block].

    In units of their spread. The two models are equal, as their difference over the whole text of N
    blocks is subtracted. The mean of n of these is nearer to 0 than that of n blocks of an endless
    text, by sqrt(1 - n / N): it is moved away by that.
    """
    found = residuals()
    models, length = found.shape
    scale = 1 / np.sqrt(1 - blocks / length)
    draws = np.empty((count, blocks))
    for draw in draws:
        one, other = rng.choice(models, 2, replace=False)
        difference = found[one] - found[other]
        start = rng.integers(length - blocks + 1)
        difference = (difference - difference.mean()) / difference.std()
        draw[:] = difference[start : start + blocks]
        draw += (scale - 1) * draw.mean()
    return draws


def standard_error(correlation: float, blocks: int) -> float:
    """The true one of the mean of such an autoregression."""
    lags = np.arange(1, blocks)
    total = 1 + 2 * float(np.sum((1 - lags / blocks) * correlation**lags))
    return math.sqrt(total / (1 - correlation**2) / blocks)


def main() -> None:
    """Simulate, and print the table."""
    parser = argparse.ArgumentParser(description="How often the gate promotes, by simulation.")
    parser.add_argument("--comparisons", type=int, default=4000)
    parser.add_argument("--blocks", type=int, default=147)
    arguments = parser.parse_args()
    print("| correlation | no better | better by two standard errors | no better, naive test |")
    print("|---|---|---|---|", flush=True)
    for correlation in CORRELATIONS:
        _print_row(f"{correlation:g}", rates(correlation, arguments.blocks, arguments.comparisons))
    _print_row("real models", real_rates(arguments.blocks, arguments.comparisons))


def _print_row(name: str, found: Rates) -> None:
    print(f"| {name} |", *(f"{100 * rate:.1f} % |" for rate in found), flush=True)


if __name__ == "__main__":
    main()
