"""The mean of a difference over the blocks of a text, whose neighbours are correlated.

Used by the gate. A text's blocks are no independent draws: where one model is better on a chapter,
it is better on all blocks of it. Tests that forget this find "better" models among equal ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TERMS = 6
"""Cosines of the long-run variance, and degrees of freedom of the test."""
MAX_CORRELATION = 0.97
"""Of neighbouring blocks, in the correction; beyond it the text is too short for any bound."""


@dataclass(frozen=True)
class BlockMean:
    """A mean over the blocks of a text."""

    mean: float
    """Total over the blocks by their total size: bits per byte."""
    standard_error: float
    """Of the mean, with the correlation of blocks, in bits per byte."""
    correlation: float
    """Of neighbouring blocks, as estimated."""
    degrees_of_freedom: int

    def lower_bound(self, confidence: float) -> float:
        """One-sided lower bound of the true mean: mean - t(degrees) standard_error."""
        return self.mean - self.standard_errors(confidence) * self.standard_error

    def standard_errors(self, confidence: float) -> float:
        """By how many of its standard errors the bound of this confidence is below the mean."""
        from scipy.special import stdtrit  # only the gate's comparison needs it

        return float(stdtrit(self.degrees_of_freedom, confidence))


def block_mean(totals: Sequence[float], sizes: Sequence[int]) -> BlockMean:
    """The mean of a quantity per byte, with a standard error that holds for correlated blocks.

    The residuals of n blocks, e = total - mean size, are projected on the cosines
    L_j = sqrt(2 / n) sum_t e_t cos(pi j (t - 1/2) / n). The mean of L_j^2 over j = 1..6 estimates
    the long-run variance, and the mean divided by its standard error has a t distribution with 6
    degrees of freedom (equal-weighted cosine estimator: Mueller 2004; Lazarus, Lewis, Stock and
    Watson 2018, HAR Inference: Recommendations for Practice).

    The cosines measure the spectrum at low frequencies, not at 0: of strongly correlated blocks
    they find too little. The estimate is therefore divided by that share of a first-order
    autoregression with the same correlation of neighbours, whose bias of -(1 + 4 rho) / n
    (Marriott and Pope 1954) is added back. `make bench-gate` prints what this gains.

    Raises ValueError for fewer than two blocks.
    """
    gained, lengths = np.asarray(totals, dtype=float), np.asarray(sizes, dtype=float)
    n = len(gained)
    if n < 2:
        raise ValueError(f"expected at least 2 blocks, got {n}")
    mean = gained.sum() / lengths.sum()
    residuals = gained - mean * lengths
    terms = min(TERMS, n - 1)
    frequencies = np.pi * np.arange(1, terms + 1) / n
    cosines = np.sqrt(2 / n) * np.cos(np.outer(frequencies, np.arange(n) + 0.5))
    correlation = _neighbours(residuals)
    variance = np.mean((cosines @ residuals) ** 2) / _share_found(correlation, frequencies)
    error = math.sqrt(variance / n) / float(lengths.mean())
    return BlockMean(float(mean), error, correlation, terms)


def _neighbours(residuals: np.ndarray) -> float:
    """The correlation of neighbours, less the bias of its estimate; between -1 and 1."""
    n, total = len(residuals), float(residuals @ residuals)
    if total == 0:
        return 0.0
    found = float(residuals[1:] @ residuals[:-1]) / total
    return min(found + (1 + 4 * found) / n, MAX_CORRELATION)


def _share_found(correlation: float, frequencies: np.ndarray) -> float:
    """The spectrum of a first-order autoregression at these frequencies, as a share of that at 0.

    1 for a negative correlation, of which the cosines find too much.
    """
    rho = max(correlation, 0.0)
    spectrum = (1 - rho) ** 2 / (1 - 2 * rho * np.cos(frequencies) + rho**2)
    return float(spectrum.mean())
