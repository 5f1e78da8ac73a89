"""A search, simulated: the trials it draws, those that are stopped early, and its time."""

import heapq
import random
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pipelines.console.errors import ConfigError
from pipelines.cost.timing import step_flops
from pipelines.search.config import SearchTask
from pipelines.search.resume import StoredTrial
from pipelines.search.space import Space
from pipelines.search.study import build_study
from pipelines.training.config import TrainingRun

LEARNING_SAMPLERS = ("tpe", "gp", "cmaes")
"""Their proposals depend on results: a random sampler stands for them."""
SIZE_KEYS = ("model.", "train.batch_tokens", "train.micro_batch_tokens")


@dataclass
class SimulatedSearch:
    """One way in which a search may go."""

    winner: TrainingRun
    seconds: float = 0.0
    flops: float = 0.0
    trials: int = 0


def draw_trials(task: SearchTask, stored: Sequence[StoredTrial], seed: int) -> list[TrainingRun]:
    """The trials that are left of a search, unfinished ones first, in what changes their cost."""
    if task.search.sampler.name in LEARNING_SAMPLERS:
        search = task.search.replace({"sampler.name": "random", "warm_start": []})
        task = replace(task, search=search, base=task.base.replace({"seed": seed}))
    space, study = Space(task), build_study(task, stored)
    left = task.search.trial_count - sum(trial.state is not None for trial in stored)
    found: dict[str, TrainingRun] = {}
    drawn = [space.suggest(study.ask()) for _ in range(left)]
    sizes = [{k: v for k, v in values.items() if k.startswith(SIZE_KEYS)} for values in drawn]
    for size in sizes:
        found.setdefault(repr(size), _sized(task.base, size))
    return [found[repr(size)] for size in sizes]


def _sized(base: TrainingRun, size: Mapping[str, Any]) -> TrainingRun:
    """The base in a size; as it is if the keys do not go together, which fails a trial at once."""
    with suppress(ConfigError):
        return base.replace(size)
    return base


def simulate(
    task: SearchTask,
    stored: Sequence[StoredTrial],
    trials: Sequence[TrainingRun],
    step_seconds: Callable[[TrainingRun], float],
    concurrent: int,
    *,
    seed: int = 0,
    elapsed: float = 0.0,
) -> SimulatedSearch:
    """Run the trials that are left of a search, each of a random quality.

    Args:
        task: The search.
        stored: Its trials so far. If some have ended, others end where a random one of them did.
        trials: Those that are left, unfinished ones first.
        step_seconds: Of a trial, with its share of all that is no step.
        concurrent: How many run at once.
        seed: Of the qualities.
        elapsed: Seconds that the search has taken so far.

    """
    rng, rungs = random.Random(seed), _rungs(task)
    begun = [trial.tokens for trial in stored if trial.state is None]
    depths = [trial.tokens for trial in stored if trial.state in ("complete", "pruned")]
    tokens, free = sum(trial.tokens for trial in stored), [0.0] * concurrent
    found, best = SimulatedSearch(task.base), (True, 1.0)
    for number, run in enumerate(trials):
        start, batch, quality = heapq.heappop(free), run.train.batch_tokens, rng.random()
        if number >= len(begun) and not task.search.within_budget(tokens, elapsed + start):
            break
        first = begun[number] // batch if number < len(begun) else 0
        stop = rng.choice(depths) if depths else _stop_tokens(task, rungs, quality)
        last = max(first, _end(run, stop))
        steps = last - first
        heapq.heappush(free, start + steps * step_seconds(run))
        tokens += steps * batch
        found.flops += steps * step_flops(run)
        found.trials += 1
        if (rank := (last < run.train.steps, quality)) <= best:
            found.winner, best = run, rank
    found.seconds = max(free, default=0.0)
    return found


def _end(run: TrainingRun, tokens: float) -> int:
    """The first evaluation after so many tokens, at which a trial is stopped; or its last step."""
    steps = run.train.eval_steps
    return next((step for step in steps if step * run.train.batch_tokens >= tokens), steps[-1])


def _rungs(task: SearchTask) -> dict[float, list[float]]:
    """Tokens at which trials are stopped, with the qualities of those that were there, in order."""
    scheduler, train = task.search.scheduler, task.base.train
    tokens, rungs = float(task.grace_tokens), dict[float, list[float]]()
    while scheduler.name != "none" and tokens < train.steps * train.batch_tokens:
        rungs[tokens] = []
        if scheduler.name == "median":
            break
        tokens *= scheduler.reduction_factor
    return rungs


def _stop_tokens(task: SearchTask, rungs: dict[float, list[float]], quality: float) -> float:
    """Where the next trial ends: beyond a rung goes the better half, or what ASHA keeps."""
    scheduler = task.search.scheduler
    keep = 2 if scheduler.name == "median" else scheduler.reduction_factor
    for tokens, reached in rungs.items():
        insort(reached, quality)
        if reached.index(quality) >= max(1, len(reached) / keep):
            return tokens
    return float("inf")
