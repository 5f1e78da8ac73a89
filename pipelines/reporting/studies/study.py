"""A study as the report shows it: what was measured of its arms, and their comparison.

Made and stored by the stage compare; drawn by the figures, shown by the page.
"""

from dataclasses import dataclass, replace

from pipelines.comparison.table import Arm, Comparison, Row, compare
from pipelines.comparison.values import Interval, Ratio
from pipelines.comparison.verdicts import pair


@dataclass(frozen=True)
class Study:
    """The arms of a study, and their comparison with a baseline."""

    arms: tuple[Arm, ...]
    """In the order of the experiment."""
    comparison: Comparison
    looks: tuple[tuple[int, ...], ...]
    """The seeds that there were whenever a verdict was shown, the present ones last."""
    single_look: bool = False
    """Whether the experiment promised to look once."""
    token_seconds: float | None = None
    """Training time of a token of the baseline, alone on one slot; None if it was not probed, 0
    if no other arm could be."""

    @property
    def base(self) -> Arm:
        """The baseline."""
        return self.arm(self.comparison.baseline)

    @property
    def others(self) -> tuple[Arm, ...]:
        """All arms but the baseline, the lowest mean difference first."""
        rows = {row.arm: row.difference for row in self.comparison.rows if row.difference}
        means = {name: found.paired.mean for name, found in rows.items()}
        arms = [arm for arm in self.arms if arm.name in rows]
        return tuple(sorted(arms, key=lambda arm: (means[arm.name] is None, means[arm.name] or 0)))

    @property
    def ordered_rows(self) -> list[Row]:
        """The baseline's row, and the others from the best to the worst."""
        rows = {row.arm: row for row in self.comparison.rows}
        return [rows[arm.name] for arm in (self.base, *self.others)]

    def arm(self, name: str) -> Arm:
        """An arm by its name."""
        return next(arm for arm in self.arms if arm.name == name)

    def differences(self, arm: Arm) -> tuple[float, ...]:
        """Bits per byte of an arm minus the baseline's, of each pair that has both."""
        return pair(arm.bits, self.base.bits).differences

    def seconds_of_token(self, arm: Arm) -> float | None:
        """Training time of a token of an arm, alone on one slot; None if it was not probed."""
        if not self.token_seconds or arm.step_time is None:
            return None
        return self.token_seconds * arm.step_time.value

    def against(self, baseline: str) -> "Study":
        """The same arms compared with another baseline."""
        base, settings = self.arm(baseline), self.comparison
        arms = tuple(replace(arm, step_time=_relative(arm, base)) for arm in self.arms)
        found = compare(
            *(arms, baseline, self.looks),
            single_look=self.single_look,
            smallest_difference=settings.smallest_difference,
        )
        return replace(self, arms=arms, comparison=found, token_seconds=self.seconds_of_token(base))


def _relative(arm: Arm, base: Arm) -> Ratio | None:
    """The step time relative to another baseline.

    Both were measured against the first one: the interval has the ends of both intervals.
    """
    if arm.step_time is None or base.step_time is None:
        return None
    if arm.name == base.name:
        return Ratio(1.0)
    one, other = _ends(arm.step_time), _ends(base.step_time)
    between = Interval(one.low / other.high, one.high / other.low)
    return Ratio(arm.step_time.value / base.step_time.value, between)


def _ends(ratio: Ratio) -> Interval:
    return ratio.interval or Interval(ratio.value, ratio.value)
