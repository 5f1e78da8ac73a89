"""Verdicts of a study: is an arm better than the baseline, worse, or is it undecided.

Used by pipelines.comparison.table. Holm's procedure over the arms decides, at each look at the
results with its share of the level; divergence is an outcome, not a gap.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pipelines.comparison.statistics import LEVEL, Paired, holm, look_level, paired
from pipelines.comparison.values import Verdict

Bits = Mapping[int, float | None]
"""Bits per byte of an arm's replicates by their seeds; None for one that diverged."""


@dataclass(frozen=True)
class Pairs:
    """An arm's replicates beside the baseline's of the same seeds."""

    differences: tuple[float, ...]
    """Arm minus baseline where neither diverged, in bits per byte, in the order of the seeds."""
    arm_diverged: int = 0
    """Seeds with which the arm diverged and the baseline did not."""
    baseline_diverged: int = 0
    """Seeds with which the baseline diverged and the arm did not."""


@dataclass(frozen=True)
class Difference:
    """An arm compared with the baseline."""

    paired: Paired
    """Over all seeds that both have."""
    holm_p: float | None
    """The t-test's p-value at the last look, adjusted for the number of arms."""
    verdict: Verdict
    decided_at: int | None = None
    """The look that decided, from 1; None while undecided."""
    arm_diverged: int = 0
    """Seeds with which the arm diverged and the baseline did not; 0 in an older store."""
    baseline_diverged: int = 0
    """Seeds with which the baseline diverged and the arm did not; 0 in an older store."""

    @property
    def blocked(self) -> Verdict | None:
        """The verdict that divergence rules out, whatever further seeds say; None if it does not.

        That is the one to which the mean of the pairs points. Where no pair has two results, an arm
        that diverged is as one that is better, and one beside a baseline that did as one that is
        worse: more seeds of what has diverged with all of them are not worth their training.
        """
        mean = self.paired.mean
        if self.verdict != "undecided":
            return None
        if mean is None and not self.arm_diverged:
            return "worse" if self.baseline_diverged else None
        if mean is None or mean < 0:
            return "better" if self.arm_diverged else None
        return "worse" if self.baseline_diverged else None


def pair(arm: Bits, baseline: Bits, seeds: Collection[int] | None = None) -> Pairs:
    """The pairs of an arm and the baseline, of all seeds that both have or of some of them."""
    shared = sorted(arm.keys() & baseline.keys() & set(arm if seeds is None else seeds))
    both = [(arm[seed], baseline[seed]) for seed in shared]
    return Pairs(
        tuple(a - b for a, b in both if a is not None and b is not None),
        sum(a is None and b is not None for a, b in both),
        sum(b is None and a is not None for a, b in both),
    )


def differences(
    arms: Mapping[str, Bits],
    baseline: Bits,
    looks: Sequence[Collection[int]],
    *,
    single_look: bool = False,
) -> dict[str, Difference]:
    """Each arm's difference from the baseline, and its verdict.

    Args:
        arms: the replicates of all arms but the baseline.
        baseline: the baseline's replicates.
        looks: the seeds that there were whenever a verdict was shown, the present ones last.
        single_look: whether the experiment promised to look once, at the planned number of seeds.

    Every look applies Holm's procedure to the seeds that it saw, at its own level. A verdict stays
    when seeds are added as long as the new p-value is within 0.05 and of the same sign: an
    extension at a smaller level alone takes nothing back, contrary data do.
    """
    found: dict[str, Difference] = {}
    for number, seeds in enumerate(looks, 1):
        pairs = {name: pair(bits, baseline, seeds) for name, bits in arms.items()}
        tests = {name: paired(one.differences) for name, one in pairs.items()}
        adjusted = holm([test.p for test in tests.values()])
        level = look_level(number, single=single_look)
        for (name, test), p in zip(tests.items(), adjusted, strict=True):
            now, at = verdict(pairs[name], test, p, level), number
            before = found.get(name)
            if before is not None and verdict(pairs[name], test, p, LEVEL) == before.verdict:
                now, at = before.verdict, before.decided_at or number
            lost = pairs[name].arm_diverged, pairs[name].baseline_diverged
            found[name] = Difference(test, p, now, None if now == "undecided" else at, *lost)
    return found


def verdict(pairs: Pairs, test: Paired, holm_p: float | None, level: float) -> Verdict:
    """The verdict of one look at an arm, given its adjusted p-value and the level of that look.

    An arm that diverges where the baseline does not is never better, and one that does not where
    the baseline does is never worse, whatever the pairs that are left say.
    """
    if test.mean is None or holm_p is None or holm_p > level or level == 0:
        return "undecided"
    if test.mean < 0:
        return "undecided" if pairs.arm_diverged else "better"
    return "undecided" if pairs.baseline_diverged else "worse"
