"""The cost of what is left of a sweep: a table of sizes, and the time of search, fit and all."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pipelines.cluster.capacity import Cluster, max_concurrent_jobs
from pipelines.cluster.connection import cluster_address
from pipelines.console.text import format_duration
from pipelines.cost.earlier import EarlierRuns
from pipelines.cost.simulation import SIZE_KEYS, SimulatedSearch, draw_trials, simulate, step_flops
from pipelines.cost.timing import time_steps
from pipelines.engine.cache import PlannedStage
from pipelines.experiment import Experiment
from pipelines.search.results import Selected
from pipelines.search.resume import joining, stored_search
from pipelines.search.space import RUN_KEYS
from pipelines.tracking.schema import SECONDS_METRIC
from pipelines.tracking.store import Run
from pipelines.training.config import STEP_PARAMS, TrainingRun
from pipelines.training.memory import MIB, peak_bytes

DEFAULT_SECONDS = {
    **{"command": 4.0, "corpus": 2.0, "search": 10.6, "select": 0.1, "trial": 0.4, "fit": 1.5},
    **{"evaluate": 6.0, "register": 3.0, "promote": 3.2, "sample": 5.0, "report": 1.2},
}
"""Where the store has no earlier run: of a tiny sweep on two cores. Of a search until its first
trial; of a trial and a fit all but steps and evaluations."""
WORKERS_SECONDS = 15.7
"""The start of several workers of a fit."""
SIZES, SEARCHES = 3, 20
"""Sizes that are timed, the smallest and the largest among them; and simulated searches."""
TEXT_SECONDS_PER_BYTE = 2e-6
"""Of the test split under common compressors, and the search for what the training text has too."""
Row = tuple[str, ...]
HEADER: Row = ("", "parameters", "FLOPs", "memory", "step", "time")


def estimate(
    experiment: Experiment,
    corpus_bytes: Mapping[str, int],
    planned: Sequence[PlannedStage],
    cluster: Cluster,
    log: Callable[[str], Any],
    *,
    retry_failed: bool = False,
) -> list[str]:
    """Lines for people: what is left to do and what it takes; none if nothing is left to train.

    With `retry_failed` failed trials are left, too.

    A fit that was left unfinished counts from its start, a search from its last evaluations. `log`
    is called before steps are timed, which takes seconds.
    """
    stages = {one.stage.name: one for one in planned if not one.reused}
    if not stages.keys() & {"search", "fit"}:
        return []
    earlier, validation_bytes = EarlierRuns(experiment), corpus_bytes["validation"]
    costs = _Costs(experiment, earlier, validation_bytes, log, retry_failed)
    notes, reading = [], np.zeros(1)
    if "search" in stages:
        searches = costs.searches(cluster, stages["search"].run)
        notes.append(f"search {_range([one.seconds for one in searches])}")
    else:
        chosen = (one.result for one in planned if isinstance(one.result, Selected))
        values = next((one.values for one in chosen), {})
        searches = [SimulatedSearch(experiment.training_run(values))]
    seconds = np.array([one.seconds for one in searches])
    flops = np.array([one.flops for one in searches])
    if "fit" in stages:
        fits = [experiment.fit_run(one.winner.params) for one in searches]
        times = costs.times("fit", fits, 1)
        notes.append(f"fit    {_range([times.of_run(one) for one in fits])}")
        seconds += [times.of_run(one) for one in fits]
        flops += [step_flops(one) * one.train.steps for one in fits]
        reading = np.array([times.of_reading(one, corpus_bytes["test"]) for one in fits])
    for name in {"command", *stages} - {"search", "fit"}:
        more = reading * (name in ("evaluate", "promote"))
        if name == "evaluate":
            more = more + corpus_bytes["test"] * TEXT_SECONDS_PER_BYTE
        seconds = seconds + costs.of_stage(name, more)
    notes.append(f"all    {_range(seconds)}, {np.median(flops):.2e} FLOPs")
    if costs.timed and cluster_address():
        notes.append("steps were timed on this machine, not on the cluster at RAY_ADDRESS")
    return [*_align([HEADER, *costs.table]), "", *notes]


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


@dataclass
class _Costs:
    """Times of one experiment: of earlier runs where there are any, else of timed steps."""

    experiment: Experiment
    earlier: EarlierRuns
    validation_bytes: int
    log: Callable[[str], Any]
    retry_failed: bool = False
    table: list[Row] = field(default_factory=list)
    timed: bool = False
    timed_steps: dict[tuple[Any, ...], float] = field(default_factory=dict)
    """Seconds of timed steps, by what they depend on: those of a
    trial are those of a fit that differs in its budget alone."""

    def of_stage(self, name: str, reading: Any = 0) -> Any:
        """Of a stage, of a search until its first trial; `reading` comes on top of the default."""
        found = self.earlier.stage_seconds(name)
        return DEFAULT_SECONDS[name] + reading if found is None else found

    def searches(self, cluster: Cluster, run: Run | None) -> list[SimulatedSearch]:
        """Ways in which what is left of the search may go, which was begun in a run or not."""
        task, store, stored, elapsed = self.experiment.search_task(), self.earlier.store, [], 0.0
        if store and run:
            run_id = run.info.run_id
            stored = [*stored_search(store, run_id, task).trials, *joining(store, run_id, task)]
            if self.retry_failed:
                stored = [trial for trial in stored if trial.state != "failed"]
            elapsed = max(store.history(run.info.run_id, SECONDS_METRIC).values(), default=0.0)
        drawn = [draw_trials(task, stored, task.base.seed + seed) for seed in range(SEARCHES)]
        concurrent = min(max_concurrent_jobs(cluster, task.base.resources), len(drawn[0]))
        seconds = self.times(
            "trial", [one for trials in drawn for one in trials], concurrent
        ).of_run
        found = [
            simulate(task, stored, trials, seconds, concurrent, seed=seed, elapsed=elapsed)
            for seed, trials in enumerate(drawn)
        ]
        for one in found:
            one.seconds += self.of_stage("search") if one.trials else 0.0
        return found

    def times(self, kind: str, runs: Sequence[TrainingRun], concurrent: int) -> Times:
        """Times of some sizes of the trials or fits; adds them to the table."""
        ordered = [run for _, run in sorted({step_flops(run): run for run in runs}.items())]
        picks = np.linspace(0, len(ordered) - 1, min(SIZES, len(ordered))).round()
        sizes = {ordered[int(pick)]: 0.0 for pick in picks}
        known = {run: self.earlier.step_seconds(kind, run) for run in sizes}
        sizes |= {run: seconds for run, seconds in known.items() if seconds is not None}
        if new := [run for run in sizes if known[run] is None]:
            self.timed = True
            cores = max(1, (os.cpu_count() or 1) // new[0].resources.cpus_per_worker)
            processes = min(cores, concurrent * new[0].resources.max_workers)
            keys = {run: (processes, run.resources, *_of_step(run)) for run in new}
            if left := [run for run in new if keys[run] not in self.timed_steps]:
                self.log(f"timing a few steps of {len(left)} sizes of a {kind} ...")
                found = time_steps(left, processes=processes)
                self.timed_steps |= zip((keys[run] for run in left), found, strict=True)
            sizes |= {run: self.timed_steps[keys[run]] for run in new}
        times = Times(kind, self.validation_bytes, sizes)
        self.table += times.rows()
        return times


def _of_step(run: TrainingRun) -> list[str]:
    """What the time of a step depends on."""
    return [f"{k}={v}" for k, v in run.params.items() if k.startswith(STEP_PARAMS)]


def _align(table: Sequence[Row]) -> list[str]:
    first, *others = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join([name.ljust(first), *map(str.rjust, cells, others)]) for name, *cells in table
    ]


def _range(seconds: Any) -> str:
    low, middle, high = np.quantile(seconds, [0.1, 0.5, 0.9])
    return f"about {format_duration(middle)} ({format_duration(low)} to {format_duration(high)})"
