"""Statistics of paired differences: t-intervals, Holm's procedure, sign flips, seeds needed.

Used by pipelines.comparison.verdicts. A difference is an arm's bits per byte minus the baseline's,
of replicates with the same seed; a negative one is better.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.comparison.values import Interval

LEVEL = 0.05
"""Two-sided level of a whole study, over all its arms and looks."""
FIRST_LOOK_LEVEL = 0.04
"""Spent at the planned number of seeds; later looks share the rest."""
POWER = 0.8
"""With which `seeds_needed` finds a difference."""
SD_CONFIDENCE = 0.8
"""Of the upper bound of the standard deviation that `seeds_needed` plans with."""
MAX_PAIRS = 2**40
"""That `seeds_needed` considers."""
LARGE_SHIFT = 10.0
"""Times the critical value, from which the power is 1: less than that by 1e-20 or so."""
MAX_FLIPPED = 30
"""Differences of which all signs are flipped: more take exponentially longer."""


@dataclass(frozen=True)
class Paired:
    """The differences of n pairs; None stands for what so few pairs cannot give."""

    n: int
    mean: float | None = None
    """In bits per byte."""
    sd: float | None = None
    """Standard deviation of the differences with n - 1 in the denominator, in bits per byte."""
    p: float | None = None
    """Two-sided p-value of Student's t-test that the mean is 0."""
    sign_flip_p: float | None = None
    """Two-sided p-value of the exact sign-flip test."""

    @property
    def t(self) -> float | None:
        """Student's t: mean / (sd / sqrt(n)); infinite if all differences are equal and not 0."""
        if self.mean is None or self.sd is None:
            return None
        if self.sd == 0:
            return math.copysign(math.inf, self.mean) if self.mean else 0.0
        return self.mean / (self.sd / math.sqrt(self.n))

    def interval(self, arms: int = 1) -> Interval | None:
        """The 95 % t-interval of the mean: mean +- t(n - 1) sd / sqrt(n).

        With the number of arms compared, the simultaneous interval: all of them together contain
        their true means with 95 % confidence (Bonferroni: each has the level 0.05 / arms).
        """
        if self.mean is None or self.sd is None:
            return None
        half = _t_quantile(1 - LEVEL / arms / 2, self.n - 1) * self.sd / math.sqrt(self.n)
        return Interval(self.mean - half, self.mean + half)


def paired(differences: Sequence[float]) -> Paired:
    """Mean, standard deviation and tests of paired differences in bits per byte."""
    values = np.asarray(differences, dtype=float)
    n = len(values)
    if n == 0:
        return Paired(0)
    mean = float(values.mean())
    if n == 1:
        return Paired(1, mean)
    equal = bool((values == values[0]).all())  # or rounding leaves a deviation
    found = Paired(n, mean, 0.0 if equal else float(values.std(ddof=1)))
    assert found.t is not None
    p = min(1.0, 2 * _t_below(-abs(found.t), n - 1))
    return Paired(n, mean, found.sd, p, sign_flip_p(differences))


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """Two-sided p-value of the exact sign-flip test (Fisher 1935, The Design of Experiments, 21).

    The share of all 2^n choices of signs whose sum is at least as far from 0 as the sum found; it
    assumes no normal distribution. None for none, or more than MAX_FLIPPED. The sums of two halves
    are counted in pairs, which takes 2^(n / 2) steps.
    """
    values = np.asarray(differences, dtype=float)
    if not 0 < len(values) <= MAX_FLIPPED:
        return None
    found = abs(values.sum()) - 1e-9 * np.abs(values).sum()  # equal sums differ by rounding
    middle = len(values) // 2
    left, right = _signed_sums(values[:middle]), np.sort(_signed_sums(values[middle:]))
    above = len(right) - np.searchsorted(right, found - left, side="left")
    below = np.searchsorted(right, -found - left, side="right")
    total = len(left) * len(right)
    return float(min(total, (above + below).sum()) / total)


def sign_flip_floor(n: int) -> float:
    """The smallest p-value that the sign-flip test of n differences can have: 2 / 2^n."""
    return min(1.0, 2.0 ** (1 - n))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for their number (Holm 1979): reject those at most the level.

    The k-th smallest of m is multiplied by m + 1 - k, and is at least the adjusted one before it.
    Rejects a true hypothesis with at most the probability of the level, however the tests depend on
    each other. None (too few pairs) counts as one of the m, and stays None.
    """
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    ranked = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    for rank, (p, i) in enumerate(ranked):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[i] = largest
    return adjusted


def look_level(look: int, *, single: bool = False) -> float:
    """The level spent at a look at the results, 1 being the one at the planned number of seeds.

    0.04 at the first, then half of what is left each time: 0.005, 0.0025, ... The sum over any
    number of looks is under 0.05, so that a study extended while undecided keeps its level. An
    experiment that promises a `single` look spends 0.05 there and nothing later.
    """
    if single:
        return LEVEL if look == 1 else 0.0
    return FIRST_LOOK_LEVEL if look == 1 else (LEVEL - FIRST_LOOK_LEVEL) * 0.5 ** (look - 1)


def seeds_needed(sd: float, n: int, difference: float, level: float = LEVEL) -> int | None:
    """Pairs with which a t-test of this two-sided level finds a difference with power 0.8.

    Plans with the upper 80 % bound of the standard deviation found over n pairs,
    sd sqrt((n - 1) / chi2(0.2, n - 1)), and with the noncentral t distribution; never with the
    difference found, which is the more exaggerated the fewer seeds there are. None for more than
    MAX_PAIRS.
    """
    from scipy.special import chdtri

    bound = sd * math.sqrt((n - 1) / chdtri(n - 1, SD_CONFIDENCE))
    high = 2
    while not _power(high, bound, difference, level) >= POWER:
        if high >= MAX_PAIRS or not level:  # which a thousand looks have halved to 0
            return None
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        enough = _power(middle, bound, difference, level) >= POWER
        low, high = (low, middle) if enough else (middle, high)
    return high


def geometric_mean(ratios: Iterable[float]) -> tuple[float, Interval | None]:
    """The geometric mean of positive ratios, with the 95 % t-interval of their logarithm."""
    logs = paired([math.log(ratio) for ratio in ratios])
    assert logs.mean is not None
    found = logs.interval()
    return math.exp(logs.mean), found and Interval(math.exp(found.low), math.exp(found.high))


def median_interval(values: Sequence[float]) -> tuple[float, Interval | None]:
    """The median, and the 95 % interval of it between two of the values in order.

    The k-th smallest and the k-th largest of n contain the true median with probability
    1 - 2 P(B <= k - 1), B being binomial with n and 1/2, whatever the distribution: the largest k
    is taken that keeps it. None for fewer than six values.
    """
    ordered = sorted(values)
    n, outside, beyond = len(ordered), 0.0, 0
    while (outside := outside + 2 * math.comb(n, beyond) / 2**n) <= LEVEL:
        beyond += 1
    found = Interval(ordered[beyond - 1], ordered[n - beyond]) if beyond else None
    return float(np.median(ordered)), found


def _power(n: int, sd: float, difference: float, level: float) -> float:
    """Probability that a t-test over n pairs finds a difference, in its true direction."""
    from scipy.special import nctdtr

    if n < 2:
        return 0.0
    if sd == 0 or not level:
        return float(level > 0)
    shift = difference / (sd / math.sqrt(n))
    critical = -_t_quantile(level / 2, n - 1)
    below = float(nctdtr(n - 1, shift, critical))
    # Large shifts, as of pairs that differ by rounding only, may give no number where it is 0.
    return float(shift > LARGE_SHIFT * critical) if math.isnan(below) else 1 - below


def _signed_sums(values: np.ndarray) -> np.ndarray:
    """The sums of the values with each choice of their signs."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _t_quantile(probability: float, degrees: int) -> float:
    from scipy.special import stdtrit  # loads faster than scipy.stats, and what compares alone

    return float(stdtrit(degrees, probability))


def _t_below(t: float, degrees: int) -> float:
    """Probability that Student's t is below a value."""
    from scipy.special import stdtr

    return float(stdtr(degrees, t))
