"""The table of a study: a row for each arm with its difference, verdict and price.

Used by the stage compare and by the report; pipelines.comparison.text writes it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipelines.comparison.statistics import (
    look_level,
    paired,
    seeds_needed,
)
from pipelines.comparison.time_to_quality import (
    Curve,
    LearningRates,
    TimeToQuality,
    time_to_quality,
)
from pipelines.comparison.values import Interval, Ratio
from pipelines.comparison.verdicts import Bits, Difference, differences

NOISY = 0.1
"""Half-width of the interval of a step time, as a share of it, with which costs in time cannot be
compared."""


@dataclass(frozen=True)
class Arm:
    """What a study measured of one arm."""

    name: str
    bits: Bits
    """Of the test split."""
    curves: Mapping[int, Curve] = field(default_factory=dict)
    """Of the replicates, by seed."""
    parameters: int | None = None
    flops_per_token: float | None = None
    peak_memory_bytes: int | None = None
    step_time: Ratio | None = None
    """Of a step, relative to the baseline, probed in rotation with it."""
    rates: LearningRates | None = None


@dataclass(frozen=True)
class Row:
    """One arm in the table."""

    arm: str
    replicates: int
    """Number of those that have a result."""
    bits_per_byte: float | None
    """Mean over them, on the test split."""
    sd: float | None
    """Standard deviation over them, in bits per byte."""
    diverged: int
    """Number of replicates that diverged; they are in no mean."""
    bits_interval: Interval | None = None
    """95 % interval of the mean; two that overlap say little, as seeds are paired."""
    difference: Difference | None = None
    """From the baseline, in whose row this is None."""
    interval: Interval | None = None
    """95 % interval of the mean difference."""
    simultaneous: Interval | None = None
    """The same, for all arms together; None where there is one."""
    seeds_needed: int | None = None
    """Of an undecided arm: pairs that would find `smallest_difference` with power 0.8. None where
    divergence rules the verdict out to which the pairs point."""
    parameters: int | None = None
    parameter_ratio: float | None = None
    """To the baseline's, as the next ratio."""
    flops_per_token: float | None = None
    flops_ratio: float | None = None
    peak_memory_bytes: int | None = None
    step_time: Ratio | None = None
    """Relative to the baseline's."""
    tokens_to_quality: TimeToQuality | None = None
    time_to_quality: TimeToQuality | None = None
    """The same as a share of the wall-clock; None without a step time."""
    rates: LearningRates | None = None


@dataclass(frozen=True)
class Comparison:
    """All arms of a study beside its baseline."""

    baseline: str
    rows: tuple[Row, ...]
    """The baseline's first."""
    looks: tuple[int, ...]
    """Numbers of seeds whenever a verdict was shown, the present one last."""
    level: float
    """Spent at this look."""
    smallest_difference: float
    """Bits per byte that `seeds_needed` would find."""

    @property
    def undecided(self) -> list[Row]:
        """The arms of which it is not known whether they are better."""
        found = [(row, row.difference) for row in self.rows]
        return [row for row, one in found if one is not None and one.verdict == "undecided"]

    @property
    def decidable(self) -> list[Row]:
        """The undecided arms that more seeds may decide: divergence blocks no verdict on them."""
        found = [(row, row.difference) for row in self.undecided]
        return [row for row, one in found if one is not None and one.blocked is None]

    @property
    def noisy_times(self) -> list[tuple[str, Interval]]:
        """The arms whose step times are too noisy to compare costs in time, with the intervals."""
        times = [(row.arm, row.step_time) for row in self.rows]
        return [(arm, t.interval) for arm, t in times if t and t.interval and is_noisy(t)]

    @property
    def best(self) -> Row | None:
        """The arm with the lowest mean difference among those that are better."""
        found = [(row.difference, row) for row in self.rows if row.difference is not None]
        better = [(d.paired.mean or 0.0, row.arm, row) for d, row in found if d.verdict == "better"]
        return min(better)[-1] if better else None


def compare(
    arms: Sequence[Arm],
    baseline: str,
    looks: Sequence[Collection[int]],
    *,
    single_look: bool = False,
    smallest_difference: float,
) -> Comparison:
    """Compare the arms of a study with its baseline.

    Args:
        arms: all of them, the baseline among them.
        baseline: its name.
        looks: the seeds that there were whenever a verdict was shown, the present ones last.
        single_look: whether the experiment promised to look once.
        smallest_difference: bits per byte for which `seeds_needed` is computed.
    """
    base = next(arm for arm in arms if arm.name == baseline)
    others = [arm for arm in arms if arm.name != baseline]
    bits = {arm.name: arm.bits for arm in others}
    found = differences(bits, base.bits, looks, single_look=single_look)
    level = look_level(len(looks), single=single_look)
    later = look_level(1 if single_look else len(looks) + 1, single=single_look)
    rows = [_row(base, base)]
    for arm in others:
        row, difference = _row(arm, base), found[arm.name]
        test, tokens = difference.paired, _tokens(arm, base, difference)
        needed = None
        is_open = difference.verdict == "undecided" and difference.blocked is None
        if is_open and test.sd is not None:
            needed = seeds_needed(test.sd, test.n, smallest_difference, later / len(others))
        rows.append(
            replace(
                row,
                difference=difference,
                interval=test.interval(),
                simultaneous=test.interval(len(others)) if len(others) > 1 else None,
                seeds_needed=needed,
                tokens_to_quality=tokens,
                time_to_quality=_time(tokens, arm.step_time),
            )
        )
    sizes = tuple(len(set(seeds)) for seeds in looks)
    return Comparison(baseline, tuple(rows), sizes, level, smallest_difference)


def is_noisy(ratio: Ratio) -> bool:
    """Whether an end of the interval is further than 10 % from the ratio."""
    ends = (ratio.interval.low, ratio.interval.high) if ratio.interval else ()
    return any(abs(end / ratio.value - 1) > NOISY + 1e-9 for end in ends)


def _row(arm: Arm, base: Arm) -> Row:
    """An arm by itself, and its sizes beside the baseline's."""
    quality = paired([bits for bits in arm.bits.values() if bits is not None])
    return Row(
        arm.name,
        quality.n,
        quality.mean,
        quality.sd,
        len(arm.bits) - quality.n,
        quality.interval(),
        parameters=arm.parameters,
        parameter_ratio=_ratio(arm.parameters, base.parameters),
        flops_per_token=arm.flops_per_token,
        flops_ratio=_ratio(arm.flops_per_token, base.flops_per_token),
        peak_memory_bytes=arm.peak_memory_bytes,
        step_time=arm.step_time,
        rates=arm.rates,
    )


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _tokens(arm: Arm, base: Arm, difference: Difference) -> TimeToQuality | None:
    """Time to quality in tokens; in reverse for an arm that is worse; None without curves.

    A training that diverged is one that does not reach the quality of the other of its pair.
    """
    reverse = difference.verdict == "worse"
    reference = arm if reverse else base  # whose final quality is to be reached
    curves = [
        (_curve(arm, seed), _curve(base, seed))
        for seed in sorted(reference.curves)
        if reference.bits.get(seed) is not None
    ]
    pairs = [(one, other) for one, other in curves if one is not None and other is not None]
    return time_to_quality(pairs, reverse=reverse) if pairs else None


def _curve(arm: Arm, seed: int) -> Curve | None:
    """A replicate's curve, empty if it diverged; None if there is no such replicate."""
    diverged = seed in arm.bits and arm.bits[seed] is None
    return Curve((), ()) if diverged else arm.curves.get(seed)


def _time(tokens: TimeToQuality | None, step_time: Ratio | None) -> TimeToQuality | None:
    """Time to quality as a share of the wall-clock; None without a step time."""
    if tokens is None or step_time is None:
        return None
    ratio = step_time.inverse if tokens.reverse else step_time
    return tokens.times(ratio.value, ratio.interval)
