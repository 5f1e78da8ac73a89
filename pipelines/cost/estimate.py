"""The cost of what is left of a sweep: a table of sizes, and the time of search, fit and all."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, zip_longest
from typing import Any

import numpy as np

from pipelines.cluster.capacity import Cluster, max_concurrent_jobs
from pipelines.cluster.connection import cluster_address, machine_cpus
from pipelines.console.text import counted, format_duration
from pipelines.cost.earlier import EarlierRuns
from pipelines.cost.fits import Fits
from pipelines.cost.simulation import (
    SimulatedSearch,
    draw_trials,
    in_few_sizes,
    makespan,
    simulate,
    step_flops,
)
from pipelines.cost.times import DEFAULT_SECONDS, HEADER, Row, Times
from pipelines.cost.timing import time_steps
from pipelines.engine.cache import PlannedStage
from pipelines.experiment import Experiment
from pipelines.search.config import SearchTask
from pipelines.search.results import Selected
from pipelines.search.resume import READING, joining, stored_search
from pipelines.tracking.schema import SECONDS_METRIC
from pipelines.tracking.store import Run
from pipelines.tracking.trials import StoredTrial
from pipelines.training.config import STEP_PARAMS, TrainingRun

Waiting = Callable[[str], AbstractContextManager[None]]
"""Shows a text, with the time, during a block of work."""
SIZES, SEARCHES = 3, 20
"""Sizes that are timed, the smallest and the largest among them; and simulated searches."""
MAX_SIMULATED_TRIALS = 10_000
"""Of all simulated searches together, but one search at least: a thousand take half a second."""
MAX_SIZES = 8
"""Timed sizes of all arms together, but one of each at least."""
MAX_COUNTED = 12
"""Sizes of all arms' simulated trials together, of which FLOPs are counted, but SIZES of each."""
EARLIER = "reading earlier runs"
TEXT_SECONDS_PER_BYTE = 2e-6
"""Of the test split under common compressors, and the search for what the training text has too."""


def estimate(
    experiment: Experiment,
    corpus_bytes: Mapping[str, int],
    planned: Sequence[PlannedStage],
    cluster: Cluster,
    waiting: Waiting,
    *,
    retry_failed: bool = False,
) -> list[str]:
    """Lines for people: what is left to do and what it takes; none if nothing is left to train.

    With `retry_failed` failed trials are left, too.

    A fit that was left unfinished counts from its start, a search from its last evaluations. With
    `waiting` what takes long is shown: trials are read, the search is simulated, steps are timed.
    """
    left = [one for one in planned if not one.reused]
    searching = {_arm(one): one.run for one in left if one.stage.name == "search"}
    fitting = Counter(_arm(one) for one in left if one.stage.name == "fit")
    if not searching and not fitting:
        return []
    with waiting(EARLIER):
        earlier, size = EarlierRuns(experiment), corpus_bytes["test"]
    costs = _Costs(experiment, earlier, corpus_bytes["validation"], waiting, retry_failed)
    notes, seconds, flops = [], np.zeros(1), np.zeros(1)
    reading: dict[str, Any] = {}
    selected = {_arm(one): one.result for one in planned if isinstance(one.result, Selected)}
    winners = {
        name: [arm.training_run(selected[name].values if name in selected else {})] * costs.ways
        for name, arm in costs.arms.items()
    }
    if searching:
        searches = costs.searches(cluster, searching)
        winners |= {name: [one.winner for one in found] for name, found in searches.items()}
        seconds = costs.search_seconds(cluster, searches)
        flops = np.sum([[one.flops for one in found] for found in searches.values()], axis=0)
        notes.append(f"search {_range(seconds)}{_trials_text(searches)}")
    if fitting:
        fits = costs.fits(cluster, fitting, winners)
        seconds, flops, reading = seconds + fits.seconds, flops + fits.flops, fits.reading(size)
        notes.append(f"fit    {_range(fits.seconds)}{fits.text}")
    for name, count in Counter(["command", *(one.stage.name for one in left)]).items():
        if name not in ("search", "fit"):
            text = size * TEXT_SECONDS_PER_BYTE if name == "evaluate" else 0.0
            seconds = seconds + costs.of_stage(name, text + reading.get(name, 0.0), count)
    notes.append(f"all    {_range(seconds)}, {np.median(flops):.2e} FLOPs")
    if costs.timed and cluster_address():
        notes.append("steps were timed on this machine, not on the cluster at RAY_ADDRESS")
    return [*_align([HEADER, *costs.table]), "", *notes]


@dataclass
class _Costs:
    """Times of one experiment: of earlier runs where there are any, else of timed steps."""

    experiment: Experiment
    earlier: EarlierRuns
    validation_bytes: int
    waiting: Waiting
    retry_failed: bool = False
    table: list[Row] = field(default_factory=list)
    timed: bool = False
    timed_steps: dict[tuple[Any, ...], float] = field(default_factory=dict)
    """Seconds of timed steps, by what they depend on: those of a
    trial are those of a fit that differs in its budget alone."""

    @cached_property
    def arms(self) -> dict[str, Experiment]:
        """The experiment of each arm; without arms that of the one search, under an empty name."""
        return self.experiment.by_arm

    @cached_property
    def ways(self) -> int:
        """How many ways in which the searches may go are simulated."""
        trials = sum(arm.search.trial_count for arm in self.arms.values())
        return max(1, min(SEARCHES, MAX_SIMULATED_TRIALS // trials))

    def of_stage(self, name: str, more: Any = 0, count: int = 1) -> Any:
        """Of `count` instances of a stage, of a search until its first trial; `more` comes on top
        of the default."""
        with self.waiting(EARLIER) if self.earlier.store else nullcontext():
            found = self.earlier.stage_seconds(name)
        return DEFAULT_SECONDS[name] * count + more if found is None else found * count

    def searches(
        self, cluster: Cluster, runs: Mapping[str, Run | None]
    ) -> dict[str, list[SimulatedSearch]]:
        """Ways in which what is left of the arms' searches may go, each begun in a run or not."""
        with self.waiting(READING):
            begun = {name: self._begun(name, run) for name, run in runs.items()}
        sizes = max(SIZES, MAX_COUNTED // len(begun))
        shown = f"simulating the search {counted(self.ways, 'time')}"
        with self.waiting(shown):
            drawn = {
                name: in_few_sizes(
                    [draw_trials(task, stored, seed) for seed in range(self.ways)],
                    sizes,
                )
                for name, (task, stored, _) in begun.items()
            }
        slots = self._slots(cluster, sum(len(trials[0]) for trials in drawn.values()))
        every = {name: list(chain.from_iterable(trials)) for name, trials in drawn.items()}
        times = self.times("trial", every, slots)
        with self.waiting(shown):
            return {
                name: [
                    simulate(
                        *(task, stored, trials, times[name].of_run, slots),
                        seed=seed,
                        elapsed=elapsed,
                    )
                    for seed, trials in enumerate(drawn[name])
                ]
                for name, (task, stored, elapsed) in begun.items()
            }

    def _begun(self, name: str, run: Run | None) -> tuple[SearchTask, list[StoredTrial], float]:
        """An arm's search, the trials that there are, and the seconds that it has taken so far."""
        task, store = self.arms[name].search_task(), self.earlier.store
        if store is None or run is None:
            return task, [], 0.0
        run_id = run.info.run_id
        stored = [*stored_search(store, run_id, task).trials, *joining(store, run_id, task)]
        if self.retry_failed:
            stored = [trial for trial in stored if trial.state != "failed"]
        return task, stored, max(store.history(run_id, SECONDS_METRIC).values(), default=0.0)

    def _slots(self, cluster: Cluster, trials: int) -> int:
        """How many of so many trials run at once."""
        return min(max_concurrent_jobs(cluster, self.experiment.resources), trials)

    def search_seconds(
        self, cluster: Cluster, searches: Mapping[str, Sequence[SimulatedSearch]]
    ) -> Any:
        """Of the arms' searches in each way, whose trials take turns."""
        found, until_first = [], self.of_stage("search")
        for ways in zip(*searches.values(), strict=True):
            turns = zip_longest(*(one.durations for one in ways), fillvalue=0.0)
            durations = list(chain.from_iterable(turns))
            begins = until_first if durations else 0.0
            found.append(begins + makespan(durations, self._slots(cluster, len(durations))))
        return np.array(found)

    def fits(
        self, cluster: Cluster, counts: Mapping[str, int], winners: Mapping[str, list[TrainingRun]]
    ) -> Fits:
        """The fits that are left of each arm, with the winners of its search; adds to the table."""
        slots = min(
            max_concurrent_jobs(cluster, self.experiment.fit.resources), sum(counts.values())
        )
        paced_by = self.experiment.baseline_arm if self.experiment.budget == "time" else ""
        names = dict.fromkeys([*counts, *([paced_by] if paced_by else [])])
        runs = {
            name: [self.arms[name].fit_run(winner.params) for winner in winners[name]]
            for name in names
        }
        return Fits(runs, self.times("fit", runs, slots), counts, slots, paced_by)

    def times(
        self, kind: str, runs: Mapping[str, Sequence[TrainingRun]], concurrent: int
    ) -> dict[str, Times]:
        """Times of some sizes of each arm's trials or fits; adds them to the table."""
        count = max(1, min(SIZES, MAX_SIZES // len(runs)))
        with self.waiting(f"counting the FLOPs of some sizes of a {kind}"):
            sizes = {name: _some_sizes(own, count) for name, own in runs.items()}
            seconds = {
                run: self.earlier.step_seconds(kind, run) for own in sizes.values() for run in own
            }
        if new := [run for run, known in seconds.items() if known is None]:
            self.timed = True
            cores = max(1, machine_cpus() // new[0].resources.cpus_per_worker)
            processes = min(cores, concurrent * new[0].resources.max_workers)
            keys = {run: (processes, run.resources, *_of_step(run)) for run in new}
            left = {keys[run]: run for run in new if keys[run] not in self.timed_steps}
            if left:
                shown = f"timing a few steps of {counted(len(left), 'size')} of a {kind}"
                with self.waiting(shown):
                    found = time_steps(list(left.values()), processes=processes)
                self.timed_steps |= zip(left, found, strict=True)
            seconds |= {run: self.timed_steps[keys[run]] for run in new}
        times = {
            name: Times(kind, self.validation_bytes, {run: seconds[run] or 0.0 for run in own})
            for name, own in sizes.items()
        }
        for name, own in times.items():
            rows = [(f"{name} {row[0]}" if name else row[0], *row[1:]) for row in own.rows()]
            self.table += rows
        return times


def _arm(planned: PlannedStage) -> str:
    """The arm of an instance of a stage; empty without arms."""
    return str(dict(planned.node.position).get("arm", ""))


def _some_sizes(runs: Sequence[TrainingRun], count: int) -> list[TrainingRun]:
    """So many of the sizes, the smallest and the largest among them; of one that in the middle."""
    ordered = [run for _, run in sorted({step_flops(run): run for run in runs}.items())]
    if count == 1:
        return ordered[len(ordered) // 2 :][:1]
    picks = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round()
    return [ordered[int(pick)] for pick in picks]


def _trials_text(searches: Mapping[str, Sequence[SimulatedSearch]]) -> str:
    """How many trials are left, and the bytes they train on; nothing for the one search."""
    if "" in searches:
        return ""
    trials, tokens = (
        round(np.median([sum(values) for values in zip(*found, strict=True)]))
        for found in (
            [[one.trials for one in ways] for ways in searches.values()],
            [[one.tokens for one in ways] for ways in searches.values()],
        )
    )
    return f", {counted(trials, 'trial')} of {tokens:,} bytes together"


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
