"""The fits that are left of an experiment: one, or the replicates of a study."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.comparison.config import PROBE_ROUNDS
from pipelines.console.text import counted
from pipelines.cost.simulation import makespan, step_flops
from pipelines.cost.times import Times
from pipelines.training.config import TrainingRun
from pipelines.training.timing import SECONDS, WARM_UP_STEPS

PROBE_SECONDS = 5.0
"""Start of the process in which a study's probe times an arm beside the baseline."""


@dataclass(frozen=True)
class Fits:
    """The fits that are left, in each of the ways in which the searches may go."""

    runs: Mapping[str, Sequence[TrainingRun]]
    """By arm, in each way."""
    times: Mapping[str, Times]
    """By arm."""
    counts: Mapping[str, int]
    """How many of each arm are left, which differ in their seed."""
    slots: int
    """How many train at once."""
    paced_by: str = ""
    """The arm whose time all have; empty if each has the tokens of its configuration."""

    @property
    def seconds(self) -> Any:
        """Until the last has ended, in each way."""
        each = self._values(lambda arm, run: self.times[arm].of_run(run))
        pace = {arm: each[self.paced_by or arm] for arm in each}
        jobs = [pace[arm] for arm, count in self.counts.items() for _ in range(count)]
        return np.array([makespan(one, self.slots) for one in zip(*jobs, strict=True)])

    @property
    def flops(self) -> Any:
        """Of all of them, in each way."""
        each = self._values(lambda _, run: step_flops(run) * run.train.steps)
        if self.paced_by:
            seconds = self._values(lambda arm, run: self.times[arm].of_run(run))
            each = {arm: each[arm] * seconds[self.paced_by] / seconds[arm] for arm in each}
        return sum(count * each[arm] for arm, count in self.counts.items())

    @property
    def text(self) -> str:
        """How many, and the bytes they train on unless a time decides; nothing for one."""
        if (total := sum(self.counts.values())) == 1:
            return ""
        if self.paced_by:
            return f", {counted(total, 'training')}"
        tokens = sum(n * self.runs[arm][0].train.tokens for arm, n in self.counts.items())
        return f", {counted(total, 'training')} of {tokens:,} bytes together"

    def reading(self, size: int) -> dict[str, Any]:
        """Seconds that their models take in other stages, of which some read so many bytes."""
        each = self._values(lambda arm, run: self.times[arm].of_reading(run, size))
        total = sum(count * each[arm] for arm, count in self.counts.items())
        steps = sum(self._values(lambda arm, run: self.times[arm].of_step(run)).values())
        turns = 2 * PROBE_ROUNDS * (SECONDS + WARM_UP_STEPS * steps / len(self.runs))
        probe = (len(self.runs) - 1) * (PROBE_SECONDS + turns)
        return {"evaluate": total, "promote": total / sum(self.counts.values()), "probe": probe}

    def _values(self, value_of: Callable[[str, TrainingRun], float]) -> dict[str, Any]:
        """A value of each arm's run, in each way."""
        return {
            arm: np.array([value_of(arm, run) for run in runs]) for arm, runs in self.runs.items()
        }
