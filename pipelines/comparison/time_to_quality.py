"""How soon an arm reaches the baseline's quality, and how it depends on the learning rate.

Used by pipelines.comparison.table, and by the figures of a study.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from pipelines.comparison.statistics import geometric_mean
from pipelines.comparison.values import Interval


class Curve(NamedTuple):
    """A replicate's evaluations on the whole validation split, in the order of training."""

    tokens: Sequence[float]
    bits: Sequence[float]
    """Bits per byte."""


@dataclass(frozen=True)
class TimeToQuality:
    """Tokens at which the better side reaches the other's final quality, as a share."""

    pairs: int
    reached: int
    """Pairs in which the quality was reached."""
    reverse: bool = False
    """Whether the baseline reaches the arm's quality, because the arm is worse."""
    share: float | None = None
    """Geometric mean over the pairs; None unless all reached it."""
    interval: Interval | None = None
    """t-interval of the mean logarithm; None for one pair, too."""

    def times(self, ratio: float, between: Interval | None = None) -> "TimeToQuality":
        """The share of the wall-clock, given the step time by that of the side it is a share of.

        Args:
            ratio: of the step times.
            between: its interval; None if it has no error.

        The errors of both factors are combined on the logarithmic scale: on each side the
        half-width of the product is the root of the sum of the squares of theirs, as for
        independent errors.
        """
        if self.share is None:
            return self
        share, low_high = self.share * ratio, None
        if self.interval is not None:
            own, other = self.interval, between or Interval(ratio, ratio)
            low = math.hypot(math.log(self.share / own.low), math.log(ratio / other.low))
            high = math.hypot(math.log(own.high / self.share), math.log(other.high / ratio))
            low_high = Interval(share * math.exp(-low), share * math.exp(high))
        return TimeToQuality(self.pairs, self.reached, self.reverse, share, low_high)


def time_to_quality(
    pairs: Iterable[tuple[Curve, Curve]], *, reverse: bool = False
) -> TimeToQuality:
    """The share of the baseline's tokens at which an arm reaches its pair's final baseline value.

    Args:
        pairs: curves of the arm and of the baseline, of the same seed; an empty one, of a
            training that diverged, reaches nothing.
        reverse: for an arm that is worse: the share of the arm's tokens at which the baseline
            reaches the arm's final value.

    An arm that is ahead reaches it in the middle of its training, where the learning rate is still
    high: a training planned for that length would be better by then, so the share is too large.
    """
    shares = [share_of_tokens(*(pair[::-1] if reverse else pair)) for pair in pairs]
    found = [share for share in shares if share is not None]
    if not found or len(found) < len(shares):
        return TimeToQuality(len(shares), len(found), reverse)
    return TimeToQuality(len(shares), len(found), reverse, *geometric_mean(found))


def share_of_tokens(arm: Curve, baseline: Curve) -> float | None:
    """Tokens at which one curve reaches another's final value, as a share of the other's tokens.

    Both are smoothed by a running median of three, and straight between evaluations. None if it
    does not reach it.
    """
    target = running_median(baseline.bits)[-1]
    bits, tokens = running_median(arm.bits), np.asarray(arm.tokens, dtype=float)
    reached = np.flatnonzero((bits <= target) & (tokens > 0))
    if not len(reached):
        return None
    last = reached[0]
    at = tokens[last]
    if last > 0 and bits[last - 1] > target:
        part = (bits[last - 1] - target) / (bits[last - 1] - bits[last])
        at = tokens[last - 1] + part * (at - tokens[last - 1])
    return float(at / baseline.tokens[-1])


def running_median(values: Sequence[float]) -> np.ndarray:
    """Each value replaced by the median of itself and its neighbours; the ends stay."""
    found = np.array(values, dtype=float)
    if len(found) > 2:
        found[1:-1] = np.median(np.lib.stride_tricks.sliding_window_view(found, 3), axis=1)
    return found


@dataclass(frozen=True)
class LearningRates:
    """The loss of an arm against its learning rate, from its tuning."""

    rates: tuple[float, ...]
    """In ascending order."""
    bits: tuple[float | None, ...]
    """The best bits per byte with each; None if all trials with it diverged."""
    best_rate: float
    at_end: Literal["lowest", "highest"] | None
    """Whether the best rate is an end of those tried, so that one beyond may be better."""
    sensitivity: float
    """In bits per byte."""


def learning_rates(
    trials: Iterable[tuple[float, float | None]], bits_at_start: float
) -> LearningRates | None:
    """The learning-rate curve of an arm; None if no trial has a value.

    Args:
        trials: learning rate and bits per byte of each trial; None if it diverged.
        bits_at_start: bits per byte before training.

    The sensitivity is the mean over the rates of min(loss, loss at the start) - best loss
    (Wortsman et al. 2023, arXiv 2309.14322); a diverged rate counts as the loss at the start.
    """
    curve: dict[float, float] = {}
    for rate, bits in trials:
        value = math.inf if bits is None or math.isnan(bits) else bits
        curve[rate] = min(curve.get(rate, math.inf), value)
    rates = tuple(sorted(curve))
    values = [curve[rate] for rate in rates]
    if not values or math.isinf(min(values)):
        return None
    best = int(np.argmin(values))
    ends: dict[int, Literal["lowest", "highest"]] = {len(rates) - 1: "highest", 0: "lowest"}
    return LearningRates(
        rates,
        tuple(None if math.isinf(value) else value for value in values),
        rates[best],
        ends.get(best) if len(rates) > 1 else None,
        float(np.mean(np.minimum(values, bits_at_start) - min(values))),
    )
