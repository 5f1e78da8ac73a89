"""The cost of what is left of a sweep: a table of sizes, and the time of search, fit and all."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pipelines.cluster.capacity import Cluster, max_concurrent_jobs
from pipelines.cluster.connection import cluster_address
from pipelines.config.yaml_text import flatten
from pipelines.console.text import format_duration
from pipelines.cost.earlier import EarlierRuns
from pipelines.cost.simulation import SIZE_KEYS, SimulatedSearch, draw_trials, simulate
from pipelines.cost.timing import interpolated, step_flops, time_steps
from pipelines.engine.cache import PlannedStage
from pipelines.experiment import Experiment
from pipelines.training.config import TrainingRun
from pipelines.training.memory import MIB, peak_bytes

DEFAULT_SECONDS = {
    **{"command": 4.0, "corpus": 2.0, "search": 10.6, "select": 0.1, "trial": 0.4, "fit": 1.5},
    **{"evaluate": 6.0, "register": 3.0, "promote": 3.2, "sample": 5.0, "report": 1.2},
    "workers": 15.7,
}
"""Where the store has no earlier run: of a tiny sweep on two cores. Of a search until its first
trial; of a trial and a fit all but steps and evaluations; `workers` more if a fit has several."""
MAX_SIZES = 3
"""Sizes that are timed: the smallest, the largest, and one between."""
SIMULATED_TRIALS, MIN_SEARCHES, MAX_SEARCHES = 400, 5, 40
"""About so many trials are simulated in all, in so many searches."""
HEADER = ("", "parameters", "FLOPs", "memory", "step", "time")
Row = tuple[str, ...]


def estimate(
    experiment: Experiment,
    corpus_bytes: Mapping[str, int],
    planned: Sequence[PlannedStage],
    cluster: Cluster,
    log: Callable[[str], Any],
) -> list[str]:
    """Lines for people: what is left to do and what it takes; none if nothing is left to train.

    A fit that was left unfinished counts from its start, a search from its last evaluations.

    Args:
        experiment: The experiment.
        corpus_bytes: Sizes of the splits.
        planned: Its stages.
        cluster: Where it will run.
        log: Called with a line before steps are timed, which takes seconds.

    """
    stages = {one.stage.name: one for one in planned}
    left = {name for name, one in stages.items() if not one.reused}
    if not left & {"search", "fit"}:
        return []
    costs = _Costs(experiment, EarlierRuns(experiment), corpus_bytes["validation"], log)
    notes = []
    if "search" in left:
        searches, table = costs.searches(cluster, stages["search"])
        notes.append(f"search {_range([one.seconds for one in searches])}")
    else:
        chosen = (stages["select"].outputs or {}).get("values", {})
        searches, table = [SimulatedSearch(experiment.training_run(chosen))], []
    seconds = np.array([one.seconds for one in searches])
    flops = np.array([one.flops for one in searches])
    if "fit" in left:
        fits = [experiment.fit_run(one.winner.params) for one in searches]
        step_seconds, rows = costs.step_seconds("fit", fits, 1)
        training = [one.train.steps * step_seconds(one) for one in fits]
        notes.append(f"fit    {_range(training)}")
        seconds, table = seconds + training, table + rows
        flops += [step_flops(one) * one.train.steps for one in fits]
    seconds += sum(costs.stage_seconds(name) for name in {"command", *left} - {"search", "fit"})
    notes.append(f"all    {_range(seconds)}, {np.median(flops):.2e} FLOPs")
    if cluster_address():
        notes.append("steps were timed on this machine, not on the cluster at RAY_ADDRESS")
    return [*_align([HEADER, *table]), "", *notes]


@dataclass(frozen=True)
class _Costs:
    """Times of one experiment: of earlier runs where there are any, else of timed steps."""

    experiment: Experiment
    earlier: EarlierRuns
    validation_bytes: int
    log: Callable[[str], Any]

    def stage_seconds(self, name: str) -> float:
        """Of a stage; of a search until its first trial."""
        found = self.earlier.stage_seconds(name)
        return DEFAULT_SECONDS[name] if found is None else found

    def searches(
        self, cluster: Cluster, planned: PlannedStage
    ) -> tuple[list[SimulatedSearch], list[Row]]:
        """Ways in which what is left of the search may go, and rows of the table."""
        task, start = self.experiment.search_task(), self.stage_seconds("search")
        stored, elapsed = self.earlier.stored_trials(task, planned.run)
        count = max(MIN_SEARCHES, min(MAX_SEARCHES, SIMULATED_TRIALS // task.search.trial_count))
        drawn = [draw_trials(task, stored, task.base.seed + number) for number in range(count)]
        concurrent = min(max_concurrent_jobs(cluster, task.base.resources), len(drawn[0]))
        sizes = [run for trials in drawn for run in trials]
        step_seconds, rows = self.step_seconds("trial", sizes, concurrent)
        found = [
            simulate(task, stored, trials, step_seconds, concurrent, seed=seed, elapsed=elapsed)
            for seed, trials in enumerate(drawn)
        ]
        return [replace(one, seconds=start + one.seconds) for one in found], rows

    def step_seconds(
        self, kind: str, runs: Sequence[TrainingRun], concurrent: int
    ) -> tuple[Callable[[TrainingRun], float], list[Row]]:
        """Seconds of a step with its share of all else, interpolated by FLOPs between some sizes of
        the trials or fits; and a row of the table for each of these."""
        ordered = sorted({step_flops(run): run for run in runs}.items())
        picks = np.linspace(0, len(ordered) - 1, min(MAX_SIZES, len(ordered))).round()
        sizes = [ordered[int(pick)][1] for pick in picks]
        found = {run: self.earlier.step_seconds(kind, run) for run in sizes}
        times = {run: seconds for run, seconds in found.items() if seconds is not None}
        if new := [run for run in sizes if run not in times]:
            self.log(f"timing a few steps of some sizes of a {kind} ...")
            cores = max(1, (os.cpu_count() or 1) // new[0].resources.cpus_per_worker)
            processes = min(cores, concurrent * new[0].resources.max_workers)
            for run, seconds in zip(new, time_steps(new, processes=processes), strict=True):
                times[run] = seconds + self._other_seconds(kind, run, seconds)
        step_seconds = interpolated(times)
        return step_seconds, _rows(kind, sizes, step_seconds)

    def _other_seconds(self, kind: str, run: TrainingRun, step_seconds: float) -> float:
        """Of all that is no step, by step: an evaluation takes a third of a step's time for the
        same bytes, as it does of FLOPs; the rest is fixed."""
        train, fixed = run.train, DEFAULT_SECONDS[kind]
        if kind == "fit" and run.resources.max_workers > 1:
            fixed += DEFAULT_SECONDS["workers"]
        tokens = min(train.eval_tokens or self.validation_bytes, self.validation_bytes)
        evaluation = step_seconds * tokens / (3 * train.batch_tokens)
        return (fixed + len(train.eval_steps) * evaluation) / train.steps


def _rows(
    kind: str, sizes: Sequence[TrainingRun], step_seconds: Callable[[TrainingRun], float]
) -> list[Row]:
    """A row for each size, named by the keys in which they differ."""
    values = [dict(flatten(run.model_dump(mode="json"))) for run in sizes]
    keys = [key for key in values[0] if key.startswith(SIZE_KEYS)]
    keys = [key for key in keys if len({repr(one[key]) for one in values}) > 1]
    on_gpu = sizes[0].resources.gpus_per_worker > 0 and torch.cuda.is_available()
    return [
        (
            f"{kind} " + ", ".join(f"{key.partition('.')[2]} {run.get(key)}" for key in keys),
            f"{run.model.parameter_count():,}",
            f"{step_flops(run) * run.train.steps:.2e}",
            f"{peak_bytes(run, on_gpu=on_gpu) / MIB:,.0f} MiB",
            f"{1000 * step_seconds(run):,.0f} ms",
            format_duration(run.train.steps * step_seconds(run)),
        )
        for run in sizes
    ]


def _align(table: Sequence[Row]) -> list[str]:
    first, *others = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join([name.ljust(first), *map(str.rjust, cells, others)]) for name, *cells in table
    ]


def _range(seconds: Any) -> str:
    low, middle, high = np.quantile(seconds, [0.1, 0.5, 0.9])
    return f"about {format_duration(middle)} ({format_duration(low)} to {format_duration(high)})"
