"""Seconds of trials and fits, from the seconds of a step of some sizes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.console.text import format_duration
from pipelines.cost.simulation import SIZE_KEYS, step_flops
from pipelines.search.space import RUN_KEYS
from pipelines.training.config import TrainingRun
from pipelines.training.memory import MIB, peak_bytes

DEFAULT_SECONDS = {
    **{"command": 4.0, "corpus": 2.0, "search": 10.6, "select": 0.1, "trial": 0.4, "probe": 0.0},
    **{"fit": 1.5, "evaluate": 6.0, "compare": 3.0, "register": 3.0, "promote": 3.2},
    **{"sample": 5.0, "report": 1.2},
}
"""Where the store has no earlier run: of a tiny sweep on two cores. Of a search until its first
trial; of a trial and a fit all but steps and evaluations."""
WORKERS_SECONDS = 15.7
"""The start of several workers of a fit."""
Row = tuple[str, ...]
HEADER: Row = ("", "parameters", "FLOPs", "memory", "step", "time")


@dataclass(frozen=True)
class Times:
    """Seconds of the trials or the fits, between those of some sizes by the FLOPs of a step."""

    kind: str
    validation_bytes: int
    sizes: Mapping[TrainingRun, float]
    """Seconds of a step, in ascending order."""

    def of_step(self, run: TrainingRun) -> float:
        """Of one optimizer step."""
        flops = [step_flops(size) for size in self.sizes]
        return float(np.interp(step_flops(run), flops, list(self.sizes.values())))

    def of_reading(self, run: TrainingRun, size: int) -> float:
        """Of an evaluation on so many bytes: a third of training on them, as of the FLOPs."""
        return self.of_step(run) * size / (3 * run.train.batch_tokens)

    def of_run(self, run: TrainingRun) -> float:
        """Of a run, its evaluations, start and end included."""
        train, several = run.train, self.kind == "fit" and run.resources.max_workers > 1
        size = min(train.eval_tokens or self.validation_bytes, self.validation_bytes)
        evaluations = len(train.eval_steps) * self.of_reading(run, size)
        fixed = DEFAULT_SECONDS[self.kind] + several * WORKERS_SECONDS
        return fixed + train.steps * self.of_step(run) + evaluations

    def rows(self) -> Iterator[Row]:
        """Rows of the table, named by the keys in which the sizes differ."""
        keys = [key for key in RUN_KEYS if key.startswith(SIZE_KEYS)]
        keys = [key for key in keys if len({repr(run.get(key)) for run in self.sizes}) > 1]
        for run, seconds in self.sizes.items():
            on_gpu = run.resources.gpus_per_worker > 0 and torch.cuda.is_available()
            name = ", ".join(f"{key.partition('.')[2]} {run.get(key)}" for key in keys)
            yield (
                f"{self.kind} {name}",
                f"{run.model.parameter_count():,}",
                f"{step_flops(run) * run.train.steps:.2e}",
                f"{peak_bytes(run, on_gpu=on_gpu) / MIB:,.0f} MiB",
                f"{1000 * seconds:,.0f} ms",
                format_duration(self.of_run(run)),
            )
