"""How often the gate promotes a model that is no better, and one that is, by simulation.

python benchmarks/gate.py [--comparisons 4000] [--blocks 147]

The differences between two models are a first-order autoregression over the blocks of the test
text, with each correlation of neighbours. The table goes to stdout as Markdown.
"""

import argparse
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

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
    confidence = PromoteConfig().confidence
    gain = GAIN_ERRORS * standard_error(correlation, blocks)
    counts = np.zeros(3)
    for values in autoregressions(rng, correlation, blocks, comparisons):
        found = block_mean(values, [1] * blocks)
        bound = found.lower_bound(confidence)
        naive = found.mean - 1.645 * np.std(values, ddof=1) / math.sqrt(blocks)
        counts += np.array([bound > 0, bound + gain > 0, naive > 0])
    return Rates(*(counts / comparisons).tolist())


def autoregressions(
    rng: np.random.Generator, correlation: float, blocks: int, count: int
) -> Iterator[list[float]]:
    """First-order autoregressions with mean 0 and steps of variance 1."""
    values = rng.standard_normal((count, blocks))
    values[:, 0] /= math.sqrt(1 - correlation**2)
    for t in range(1, blocks):
        values[:, t] += correlation * values[:, t - 1]
    yield from values.tolist()


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
        found = rates(correlation, arguments.blocks, arguments.comparisons)
        print(f"| {correlation:g} |", *(f"{100 * rate:.1f} % |" for rate in found), flush=True)


if __name__ == "__main__":
    main()
