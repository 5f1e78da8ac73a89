"""What a sweep would cost: parameters, FLOPs and memory of its trials, and the time of it all.

A few steps of some sizes are timed; the search's schedule is then played through with them, over
random orders of good and bad trials.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipelines.cluster.capacity import Cluster, max_concurrent_jobs
from pipelines.config.yaml_text import flatten
from pipelines.console.text import format_duration
from pipelines.cost.prices import CostModel, step_flops
from pipelines.cost.simulation import (
    LEARNERS,
    SIZE_KEYS,
    SimulatedSearch,
    simulate,
    sized_run,
    trials_left,
    with_random_sampler,
)
from pipelines.cost.timing import eval_tokens
from pipelines.engine.cache import Node
from pipelines.experiment import Experiment
from pipelines.search.config import SearchTask
from pipelines.search.resume import StoredTrial, trials_of
from pipelines.search.space import Space
from pipelines.search.study import build_study
from pipelines.storage.location import storage_folder
from pipelines.tracking.store import Store
from pipelines.training.config import TrainingRun

# Fixed costs in seconds, on two shared cores: TRIAL_SECONDS is measured, the others are split from
# the MLflow times of one tiny sweep.
COMMAND_SECONDS = 4.0
"""Imports, before the first stage and at the end."""
CORPUS_SECONDS = 2.0
"""Reading the 12 MB of python-stdlib through and writing its splits."""
SEARCH_SECONDS = 10.6
"""From the search's start to the first step of a trial: Ray, and the trials' imports."""
FIT_SECONDS = 17.2
"""A fit with several workers less its training: they start, the model is packaged."""
FIT_HERE_SECONDS = 1.5
"""The same with one worker, which trains in the command's own process."""
STAGE_SECONDS = {"evaluate": 6.0, "register": 3.0, "promote": 3.2, "sample": 5.0, "report": 1.2}
"""Of a tiny model: most is a process that loads torch. What evaluate reads comes on top."""

SIMULATED_TRIALS = 400
"""Trials played through in all."""
MOST_ORDERS = 40


HEADER: tuple[str, ...] = ("", "parameters", "FLOPs", "memory", "step", "time")


def estimate(
    experiment: Experiment,
    corpus_bytes: Mapping[str, int],
    nodes: Sequence[Node],
    cluster: Cluster,
    log: Callable[[str], Any],
) -> list[str]:
    """Lines that tell what is left to do and what it takes; none if nothing is.

    Times steps for a minute or so on two cores; `log` gets a line about it; `corpus_bytes` are those of each split. Training that was left
    unfinished counts from its start, a search from its last evaluations.
    """
    by_name = {node.stage.name: node for node in nodes}
    left = {name for name, node in by_name.items() if not node.reused}
    if not left & {"search", "fit"}:
        return []
    log("timing a few steps of some sizes ...")
    there = corpus_bytes["validation"]
    tokens = min(experiment.train.eval_tokens or there, there)
    experiment = experiment.replace({"train.eval_tokens": tokens})
    task = experiment.search_task()
    table, notes = [HEADER], []
    if "search" in left:
        outcomes = _searches(task, by_name["search"], cluster, table)
        notes.append(f"search {_range([one.seconds for one in outcomes])}")
    else:
        chosen = (by_name["select"].outputs or {}).get("values", {})
        outcomes = [SimulatedSearch(0, 0, experiment.training_run(chosen), 0)]
    seconds = np.array([one.seconds for one in outcomes], dtype=float)
    flops = np.array([one.flops for one in outcomes], dtype=float)
    if "fit" in left:
        fits = [experiment.fit_run(one.winner.params) for one in outcomes]
        training, testing = _fits(fits, corpus_bytes["test"], table)
        notes.append(f"fit    {_range(training)}")
        scored = [name for name in ("evaluate", "promote") if name in left]  # each by itself
        seconds += training + len(scored) * testing
        flops += [step_flops(one) * one.train.steps for one in fits]
    seconds += COMMAND_SECONDS + CORPUS_SECONDS
    seconds += sum(cost for name, cost in STAGE_SECONDS.items() if name in left)
    notes.append(f"all    {_range(seconds)}, {np.median(flops):.2e} FLOPs")
    if os.environ.get("RAY_ADDRESS"):
        notes.append("steps were timed on this machine, not on the cluster at RAY_ADDRESS")
    return [*_aligned(table), "", *notes]


def _searches(
    task: SearchTask, node: Node, cluster: Cluster, table: list[tuple[str, ...]]
) -> list[SimulatedSearch]:
    """Ways in which what is missing of the search may go; adds the timed sizes to the table."""
    stored, before = _stored(task, node)
    most = min(max_concurrent_jobs(cluster, task.base.resources), trials_left(task, stored))
    cpus = task.base.resources.max_workers * task.base.resources.cpus_per_worker
    prices = CostModel(_sizes(task), max(1, min(most, (os.cpu_count() or 1) // cpus)))
    table += _rows("trial", prices)
    orders = max(5, min(MOST_ORDERS, SIMULATED_TRIALS // task.search.trial_count))
    found = [simulate(task, stored, prices, most, seed, before) for seed in range(orders)]
    return [replace(one, seconds=SEARCH_SECONDS + one.seconds) for one in found]


def _fits(
    fits: Sequence[TrainingRun], test_split_bytes: int, table: list[tuple[str, ...]]
) -> tuple[Any, Any]:
    """Seconds that each fit takes, and its test split; adds the timed sizes to the table."""
    prices = CostModel(fits, 1)
    table += _rows("fit", prices)
    share = test_split_bytes / eval_tokens(fits[0])
    fixed = FIT_HERE_SECONDS if fits[0].resources.max_workers == 1 else FIT_SECONDS
    training = [fixed + prices.run_seconds(one) for one in fits]
    return np.array(training), np.array([share * prices.eval_seconds(one) for one in fits])


def _stored(task: SearchTask, node: Node) -> tuple[list[StoredTrial], float]:
    """The trials of a search that was begun and is not remembered, and its seconds so far."""
    store = Store.open(task.experiment, storage_folder(task.storage), create=False)
    if store is None or node.run is None:
        return [], 0.0
    seconds = store.history(node.run.info.run_id, "seconds").values()
    return trials_of(store, node.run.info.run_id, task), max(seconds, default=0.0)


def _sizes(task: SearchTask) -> list[TrainingRun]:
    """The sizes that random trials of the space have."""
    learns = task.search.sampler.name in LEARNERS
    drawn = with_random_sampler(task, task.base.seed) if learns else task
    space = Space(drawn)
    study = build_study(drawn, [])
    found: dict[str, TrainingRun] = {}
    for _ in range(max(task.search.trial_count, 64)):
        values = space.suggest(study.ask())
        key = repr({k: v for k, v in values.items() if k.startswith(SIZE_KEYS)})
        if key not in found:
            found[key] = sized_run(task, values)
    return list(found.values())


def _rows(what: str, prices: CostModel) -> list[tuple[str, ...]]:
    values = [dict(flatten(run.model_dump(mode="json"))) for run in prices.sizes]
    keys = [
        k for k in values[0] if k.startswith(SIZE_KEYS) and len({repr(v[k]) for v in values}) > 1
    ]
    rows: list[tuple[str, ...]] = []
    for run, measured in zip(prices.sizes, prices.measured, strict=True):
        label = ", ".join(f"{key.partition('.')[2]} {run.get(key)}" for key in keys)
        rows.append(
            (
                f"{what} {label}".strip(),
                f"{run.model.parameter_count():,}",
                f"{step_flops(run) * run.train.steps:.2e}",
                f"{measured.peak_bytes / 2**20:,.0f} MiB",
                f"{1000 * prices.step_seconds(run):,.0f} ms",
                format_duration(prices.run_seconds(run)),
            )
        )
    return rows


def _range(seconds: Any) -> str:
    low, middle, high = np.quantile(seconds, [0.1, 0.5, 0.9])
    return f"about {format_duration(middle)} ({format_duration(low)} to {format_duration(high)})"


def _aligned(table: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in table
    ]
