"""Values of a study that its results hold: an interval, a ratio and a verdict.

Apart from how they are computed: the keys of what trains contain the modules of the results, and
must not contain a study's statistics.
"""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Interval:
    """A two-sided interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Ratio:
    """A ratio with its interval, if that is known."""

    value: float
    interval: Interval | None = None

    @property
    def inverse(self) -> "Ratio":
        """The ratio of the other side to this one."""
        ends = self.interval and Interval(1 / self.interval.high, 1 / self.interval.low)
        return Ratio(1 / self.value, ends)
