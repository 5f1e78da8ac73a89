"""A search, simulated: the trials it draws, those that are stopped early, and its time."""

import heapq
import random
from bisect import insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from typing import Any

from pipelines.console.errors import ConfigError
from pipelines.search.config import LEARNING_SAMPLERS, SearchTask
from pipelines.search.space import bounded
from pipelines.search.study import Proposals, build_study
from pipelines.tracking.trials import StoredTrial
from pipelines.training.config import TrainingRun
from pipelines.training.optimizer import matrix_work

SIZE_KEYS = (
    *("model.", "train.batch_tokens", "train.micro_batch_tokens"),
    *("train.optimizer", "train.precision"),
)
"""Searched keys that change the cost of a trial, but for real numbers."""
MAX_ORDERED = 100
"""Sizes of a search whose parameters are counted, which takes some 20 ms each."""
RUNGS = {"none": 0, "median": 1, "asha": 32}
"""How often a trial may be stopped; rungs beyond its end change nothing."""


@dataclass
class SimulatedSearch:
    """One way in which a search may go."""

    winner: TrainingRun
    seconds: float = 0.0
    flops: float = 0.0
    trials: int = 0
    durations: list[float] = field(default_factory=list)
    """Seconds of each trial."""
    tokens: int = 0
    """Trained on by all trials."""


@lru_cache(1000)  # it builds the model
def step_flops(run: TrainingRun) -> float:
    """FLOPs of one optimizer step, over all workers."""
    training = 3.0 * run.model.flops_per_token(run.train.seq_len) * run.train.batch_tokens
    return training + (matrix_work(run.model).flops if run.train.optimizer == "muon" else 0.0)


def draw_trials(task: SearchTask, stored: Sequence[StoredTrial], seed: int) -> list[TrainingRun]:
    """The trials that are left of a search, unfinished ones first, in what changes their cost.

    Random ones, with that seed, stand for those of a sampler that learns from results. Trials of
    one size are equal, whatever the seed.
    """
    base = task.base
    if task.search.sampler.name in LEARNING_SAMPLERS:
        search = task.search.replace({"sampler.name": "random", "warm_start": []})
        task = replace(task, search=search, base=task.base.replace({"seed": seed}))
    task = bounded(task, stored)
    ended = [trial for trial in stored if trial.state is not None]
    proposals = Proposals(build_study(task, stored), task, ended)
    asked = (proposals.next() for _ in range(task.search.trial_count - len(ended)))
    return [_sized(base, one.values) for one in asked if one]


def in_few_sizes(searches: Sequence[Sequence[TrainingRun]], count: int) -> list[list[TrainingRun]]:
    """The trials of some searches in at most so many sizes, the smallest and the largest among
    them: each in the one whose place in the order of the parameters is the nearest.

    Counting FLOPs runs the model, which takes 0.1 to 0.5 s a size, and counting parameters makes
    it: of many sizes one in so many is counted, and stands for those after it.
    """
    distinct = list(dict.fromkeys(chain.from_iterable(searches)))
    stride = max(1, -(-len(distinct) // MAX_ORDERED))
    ordered = sorted(
        distinct[::stride], key=lambda run: run.model.parameter_count() * run.train.batch_tokens
    )
    step = max(1.0, (len(ordered) - 1) / (count - 1))
    near = {run: ordered[round(round(i / step) * step)] for i, run in enumerate(ordered)}
    few = {run: near[distinct[i - i % stride]] for i, run in enumerate(distinct)}
    return [[few[run] for run in trials] for trials in searches]


def _sized(base: TrainingRun, values: Mapping[str, Any]) -> TrainingRun:
    """The base in a size, of which real numbers are no part: dropout, rates, a scale at the start.

    As it is if the keys do not go together, which fails a trial at once.
    """
    sizes = {
        key: value
        for key, value in values.items()
        if key.startswith(SIZE_KEYS) and not isinstance(value, float)
    }
    with suppress(ConfigError):
        return base.replace(sizes)
    return base


def simulate(
    task: SearchTask,
    stored: Sequence[StoredTrial],
    trials: Sequence[TrainingRun],
    run_seconds: Callable[[TrainingRun], float],
    concurrent: int,
    *,
    seed: int = 0,
    elapsed: float = 0.0,
) -> SimulatedSearch:
    """Run the trials that are left of a search that has taken `elapsed` seconds.

    Each has a random quality; where `stored` ones have ended, it ends where one of them did.
    """
    rng, scheduler = random.Random(seed), task.search.scheduler
    factor = scheduler.reduction_factor if scheduler.name == "asha" else 2
    rungs = {task.grace_tokens * factor**n: list[float]() for n in range(RUNGS[scheduler.name])}
    begun = [trial.tokens for trial in stored if trial.state is None]
    depths = [trial.tokens for trial in stored if trial.state in ("complete", "pruned")]
    tokens, free = sum(trial.tokens for trial in stored), [0.0] * concurrent
    found, best = SimulatedSearch(task.base), (True, 1.0)
    for number, run in enumerate(trials):
        start, batch, quality = heapq.heappop(free), run.train.batch_tokens, rng.random()
        if number >= len(begun) and not task.search.within_budget(tokens, elapsed + start):
            break
        first = begun[number] // batch if number < len(begun) else 0
        stop = rng.choice(depths) if depths else _stop_tokens(rungs, factor, quality)
        ends = [step for step in run.train.eval_steps if step * batch >= stop]
        steps = max(0, min(ends, default=run.train.steps) - first)
        found.durations.append(steps / run.train.steps * run_seconds(run))
        heapq.heappush(free, start + found.durations[-1])
        tokens += steps * batch
        found.tokens += steps * batch
        found.flops += steps * step_flops(run)
        found.trials += 1
        if (rank := (first + steps < run.train.steps, quality)) <= best:
            found.winner, best = run, rank
    found.seconds = max(free, default=0.0)
    return found


def makespan(durations: Iterable[float], slots: int) -> float:
    """Seconds until the last of some jobs has ended, each begun on the slot that is free first."""
    free = [0.0] * slots
    for seconds in durations:
        heapq.heappush(free, heapq.heappop(free) + seconds)
    return max(free, default=0.0)


def _stop_tokens(rungs: Mapping[int, list[float]], factor: int, quality: float) -> float:
    """Where the next trial is stopped: one of `factor` goes beyond a rung."""
    for tokens, reached in rungs.items():
        insort(reached, quality)
        if reached.index(quality) >= max(1, len(reached) / factor):
            return tokens
    return float("inf")
