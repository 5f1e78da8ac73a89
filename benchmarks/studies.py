"""How often a study finds a difference where there is none, by simulation.

python -m benchmarks.studies [--studies 2000]

All arms of a study do the same: what a seed adds to an arm's result is drawn from one distribution.
The verdicts are those of pipelines.comparison. The table goes to stdout as Markdown.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks.residuals import residuals
from pipelines.comparison.verdicts import differences

ARMS = 6
"""Beside the baseline."""
LOOKS = (5, 10, 20)
"""Seeds asked for first, and after each extension of a study with an arm that is undecided."""
SEED_SD, TEXT_SD = 0.01, 0.05
"""Bits per byte by which a seed changes the result of one arm, and those of all of them."""

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _of_real_models(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Models that differ in their seed alone: drawn from residuals.npz."""
    return rng.choice(residuals().mean(axis=1), size)


RESIDUALS: dict[str, Draw] = {
    "normal": lambda rng, size: rng.normal(0, SEED_SD, size),
    "skewed": lambda rng, size: rng.exponential(SEED_SD, size),
    "real": _of_real_models,
}
"""What a seed adds to an arm's result. Of equal arms the differences are symmetric even so."""


class Rates(NamedTuple):
    """Shares over simulated studies."""

    coverage: float
    """Of the 95 % intervals that contain the true difference, 0."""
    at_once: float
    """Of the studies with an arm that is better or worse, at the first number of seeds."""
    extended: float
    """The same if a study is extended as long as an arm is undecided, at any number of seeds."""


def rates(kind: str, studies: int, seed: int = 0) -> Rates:
    """Simulate studies of equal arms."""
    rng = np.random.default_rng(seed)
    covered = at_once = extended = 0
    for _ in range(studies):
        shared = rng.normal(2, TEXT_SD, LOOKS[-1])
        values = RESIDUALS[kind](rng, (ARMS + 1, LOOKS[-1])) + shared
        base, *arms = (dict(enumerate(row.tolist())) for row in values)
        named = {str(number): arm for number, arm in enumerate(arms)}
        shown = False
        for number in range(len(LOOKS)):
            found = differences(named, base, [range(n) for n in LOOKS[: number + 1]])
            decided = [one.verdict != "undecided" for one in found.values()]
            shown |= any(decided)
            if number == 0:
                at_once += any(decided)
                intervals = [one.paired.interval() for one in found.values()]
                covered += sum(i is not None and i.low <= 0 <= i.high for i in intervals)
            if all(decided):
                break
        extended += shown
    return Rates(covered / studies / ARMS, at_once / studies, extended / studies)


def main() -> None:
    """Simulate, and print the table."""
    parser = argparse.ArgumentParser(description="What studies of equal arms find, by simulation.")
    parser.add_argument("--studies", type=int, default=2000)
    arguments = parser.parse_args()
    seeds = " -> ".join(map(str, LOOKS))
    print(f"| residuals | intervals with 0 | better or worse, {LOOKS[0]} seeds | {seeds} seeds |")
    print("|---|---|---|---|", flush=True)
    for kind in RESIDUALS:
        found = rates(kind, arguments.studies)
        print(f"| {kind} |", *(f"{100 * rate:.1f} % |" for rate in found), flush=True)


if __name__ == "__main__":
    main()
