"""What a sweep would cost: parameters, FLOPs and memory of its trials, and the time of it all.

A few steps of some sizes are timed; the search's schedule is then played through with them, over
random orders of good and bad trials.
"""

from collections.abc import Sequence

import numpy as np

from pipelines.cost.timing import StepTiming, time_steps
from pipelines.training.config import TrainingRun

TIMED_SIZES = 3
"""Sizes whose steps are timed: the smallest, the largest, and between."""


class CostModel:
    """Seconds of a step and of an evaluation by the FLOPs of a step, between the measured ones."""

    def __init__(self, runs: Sequence[TrainingRun], at_once: int) -> None:
        ordered = sorted({step_flops(run): run for run in runs}.items())
        picks = np.linspace(0, len(ordered) - 1, min(TIMED_SIZES, len(ordered))).round()
        self.sizes = [ordered[int(pick)][1] for pick in picks]
        self.flops = [step_flops(run) for run in self.sizes]
        self.measured: list[StepTiming] = time_steps(self.sizes, at_once=at_once)

    def step_seconds(self, run: TrainingRun) -> float:
        """Of one optimizer step."""
        return self._between(run, [one.step_seconds for one in self.measured])

    def eval_seconds(self, run: TrainingRun) -> float:
        """Of one evaluation."""
        return self._between(run, [one.eval_seconds for one in self.measured])

    def run_seconds(self, run: TrainingRun) -> float:
        """Of a whole training run, start-up left out."""
        train = run.train
        evaluations = len(train.eval_steps) * self.eval_seconds(run)
        return train.steps * self.step_seconds(run) + evaluations

    def _between(self, run: TrainingRun, values: list[float]) -> float:
        return float(np.interp(step_flops(run), self.flops, values))


def step_flops(run: TrainingRun) -> float:
    """FLOPs of one optimizer step, over all workers."""
    train = run.train
    return 3.0 * run.model.flops_per_token(train.seq_len) * train.batch_tokens
