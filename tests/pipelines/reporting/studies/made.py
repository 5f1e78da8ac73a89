"""Studies that a test makes itself, without a store."""

from typing import Any

from pipelines.comparison.table import Arm, compare
from pipelines.comparison.time_to_quality import Curve, learning_rates
from pipelines.comparison.values import Interval, Ratio
from pipelines.reporting.studies.study import Study

TOKENS = tuple(range(100, 1100, 100))
NOISE = (0.004, -0.002, 0.001, -0.006, 0.003)


def arm(name: str, gain: float, time: float | None = None, **fields: Any) -> Arm:
    """An arm of five replicates, which are better by the gain than those of an arm without."""
    bits = {seed: 2.5 + 0.01 * seed - gain + n * (gain != 0) for seed, n in enumerate(NOISE)}
    curves = {
        seed: Curve(TOKENS, [end + 0.1 * (1000 / tokens - 1) for tokens in TOKENS])
        for seed, end in bits.items()
    }
    step_time = time and Ratio(time, Interval(0.9 * time, 1.1 * time) if time != 1 else None)
    rates = learning_rates([(1e-3, 2.7), (2e-3, 2.5 - gain), (4e-3, 2.6)], 8.0)
    given = {"bits": bits, "curves": curves, "step_time": step_time, "rates": rates}
    return Arm(name, parameters=1000, **(given | fields))


def study(
    *arms: Arm,
    looks: int = 5,
    seeds: tuple[tuple[int, ...], ...] = (),
    single_look: bool = False,
    smallest_difference: float = 0.01,
    token_seconds: float | None = None,
) -> Study:
    """The arms compared with the first, at so many seeds, or at these looks."""
    seeds = seeds or (tuple(range(looks)),)
    settings = {"single_look": single_look, "smallest_difference": smallest_difference}
    found = compare(arms, arms[0].name, seeds, **settings)
    return Study(arms, found, seeds, single_look, token_seconds)


STANDARD, DCA, CLOSE = arm("standard", 0, 1.0), arm("dca", 0.1, 1.25), arm("close", 0.001, 1.1)
