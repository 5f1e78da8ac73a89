"""What a sweep would cost: parameters, FLOPs and memory of its trials, and the time of it all.

A few steps of some sizes are timed; the search's schedule is then played through with them, over
random orders of good and bad trials.
"""

import heapq
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import TrialScheduler

from pipelines.console.errors import ConfigError
from pipelines.cost.prices import CostModel, step_flops
from pipelines.search.config import SearchTask
from pipelines.search.resume import StoredTrial
from pipelines.search.schedulers import scheduler_of
from pipelines.search.space import Space
from pipelines.search.study import OPTUNA_STATES, build_study
from pipelines.training.config import TrainingRun

TRIAL_SECONDS = 0.42
"""From the last step of a trial to the first of the next on its slot (`make bench-sweep`)."""
LEARNERS = ("tpe", "gp", "cmaes")
"""Samplers of which nobody knows beforehand what they will propose."""


SIZE_KEYS = ("model.", "train.batch_tokens", "train.micro_batch_tokens")


@dataclass(frozen=True)
class SimulatedSearch:
    """One way in which the search may go."""

    seconds: float
    flops: float
    winner: TrainingRun
    trials: int


def simulate(
    task: SearchTask,
    stored: Sequence[StoredTrial],
    prices: CostModel,
    at_once: int,
    seed: int,
    before: float = 0.0,
) -> SimulatedSearch:
    """Play what is missing of the search through: who runs when, and whom the scheduler stops.

    `before` are the seconds that it has taken so far.

    How good a trial is, is random, and the same at each of its evaluations; with finished trials
    it does as one of them did.
    """
    search = task.search
    if search.sampler.name in LEARNERS:
        task = with_random_sampler(task, seed)
    space, rng = Space(task), random.Random(seed)
    study = build_study(task, stored)
    done = [trial for trial in stored if trial.state is not None]
    begun = {trial.number: trial.tokens for trial in stored if trial.state is None}
    models = [trial for trial in done if trial.curve]
    running: dict[int, _SimulatedTrial] = {}
    finished: list[_SimulatedTrial] = []
    scheduler = scheduler_of(
        task, done, lambda number, _: bool(running[int(number)].trial.should_prune())
    )
    queue: list[tuple[float, int]] = []
    left, now, flops = trials_left(task, stored), 0.0, 0.0
    spent = sum(trial.tokens for trial in done)
    while True:
        while left > 0 and len(queue) < at_once:
            tokens = spent + sum(one.tokens for one in running.values())
            new = left <= search.trial_count - len(stored)
            if new and not search.within_budget(tokens, before + now):
                break
            left -= 1
            trial = study.ask()
            sized = sized_run(task, space.suggest(trial))
            like = rng.choice(models).curve if models else {}
            one = _SimulatedTrial(trial, sized, begun.get(trial.number, 0), rng.random(), like)
            running[trial.number] = one
            scheduler.on_trial_add(None, one.known)
            start = now + (TRIAL_SECONDS if finished else 0)
            heapq.heappush(queue, (start + one.advance(prices), trial.number))
        if not queue:
            break
        now, number = heapq.heappop(queue)
        one = running[number]
        flops += one.stretch * step_flops(one.run)
        objective = one.objective()
        if search.scheduler.name == "median":
            one.trial.report(objective, one.tokens)
        result = {"curve": [(one.tokens, objective)]}
        stop = scheduler.on_trial_result(None, one.known, result) == TrialScheduler.STOP
        if not stop and one.left:
            heapq.heappush(queue, (now + one.advance(prices), number))
            continue
        one.complete = not one.left
        scheduler.on_trial_remove(None, one.known)
        values = [objective] * len(study.directions)
        study.tell(one.trial, values if one.complete else None, state=_final_state(one))
        spent += one.tokens
        finished.append(running.pop(number))
    ranked = sorted(finished, key=lambda one: (not one.complete, one.objective()))
    return SimulatedSearch(now, flops, ranked[0].run if ranked else task.base, len(finished))


class _SimulatedTrial:
    """A trial that is played through, from evaluation to evaluation."""

    complete = False

    def __init__(
        self, trial: Any, run: TrainingRun, tokens: int, luck: float, like: Mapping[int, float]
    ) -> None:
        self.trial, self.run, self.tokens = trial, run, tokens
        self._luck, self._like = luck, like
        batch = run.train.batch_tokens
        self.left = [s for s in run.train.eval_steps if s * batch > tokens]
        self.left = self.left or run.train.eval_steps[-1:]
        self.stretch = 0
        self.known = SimpleNamespace(config={"number": trial.number}, trial_id=trial.number)

    def advance(self, prices: CostModel) -> float:
        """Go to the next evaluation; returns the seconds until it is done."""
        batch = self.run.train.batch_tokens
        step = self.left.pop(0)
        self.stretch = max(0, step - self.tokens // batch)
        self.tokens = step * batch
        steps = self.stretch * prices.step_seconds(self.run)
        return steps + prices.eval_seconds(self.run)

    def objective(self) -> float:
        """What it shows at its last evaluation."""
        reached = [value for tokens, value in self._like.items() if tokens <= self.tokens]
        return (reached[-1] if reached else 0) + self._luck * (0.001 if reached else 1)


def _final_state(one: _SimulatedTrial) -> Any:
    return OPTUNA_STATES["complete" if one.complete else "pruned"]


def with_random_sampler(task: SearchTask, seed: int) -> SearchTask:
    """The search with a sampler that proposes what a learning one might."""
    search = task.search.replace({"sampler.name": "random", "warm_start": []})
    return replace(task, search=search, base=task.base.replace({"seed": seed}))


def sized_run(task: SearchTask, values: Mapping[str, Any]) -> TrainingRun:
    """A trial with those of the values that change what a step costs; the base if they do not go
    together, which ends a trial at once."""
    changes = {key: value for key, value in values.items() if key.startswith(SIZE_KEYS)}
    with suppress(ConfigError):
        return task.base.replace(changes)
    return task.base


def trials_left(task: SearchTask, stored: Sequence[StoredTrial]) -> int:
    """Trials of the search that have not ended."""
    return task.search.trial_count - sum(trial.state is not None for trial in stored)
