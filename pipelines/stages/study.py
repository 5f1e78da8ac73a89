"""The Optuna side of the search: the space, the sampler, and a study rebuilt from stored trials."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial
from ray.tune.search import Searcher

from pipelines.runtime.config import Config, Dimension, SearchConfig, condition_order

STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


BRIEFLY_SECONDS = 0.1
"""How long Tune may wait for the next trial's run while others train."""


@dataclass(frozen=True)
class StoredTrial:
    """A trial as the tracking store remembers it; `state` is None while it is unfinished."""

    number: int
    run_id: str
    values: dict[str, Any]
    state: str | None = None
    objective: float | None = None
    tokens: int = 0
    curve: dict[int, float] = field(default_factory=dict)
    """Best objective so far by tokens, at each evaluation."""
    reason: str = ""
    status: str = ""
    """MLflow's: RUNNING, FINISHED, FAILED or KILLED."""


class Space:
    """A search space with conditions, in an order that knows a key before what depends on it."""

    def __init__(self, config: Config) -> None:
        space = config.search.space
        self._config = config
        self._dimensions = {key: space[key] for key in condition_order(space)}
        self.distributions = {key: _distribution(space[key]) for key in space}

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Values of the keys that apply."""
        values: dict[str, Any] = {}
        for key, dimension in self._dimensions.items():
            if all(self._value(k, values) == wanted for k, wanted in dimension.when.items()):
                values[key] = _suggest(trial, key, dimension)
        return values

    def _value(self, key: str, values: Mapping[str, Any]) -> Any:
        if key in self._dimensions:
            return values.get(key, _INACTIVE)
        return self._config.get(key)

    def inactive(self, values: Mapping[str, Any]) -> list[str]:
        """Searched keys that do not apply given these values."""
        return [key for key in self._dimensions if key not in values]


_INACTIVE = object()


def _suggest(trial: optuna.Trial, key: str, dimension: Dimension) -> Any:
    if dimension.choice is not None:
        return trial.suggest_categorical(key, dimension.choice)
    if dimension.int is not None:
        return trial.suggest_int(key, *dimension.int)
    if dimension.log_uniform is not None:
        return trial.suggest_float(key, *dimension.log_uniform, log=True)
    assert dimension.uniform is not None
    return trial.suggest_float(key, *dimension.uniform)


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.choice is not None:
        return CategoricalDistribution(dimension.choice)
    if dimension.int is not None:
        return IntDistribution(*dimension.int)
    if dimension.log_uniform is not None:
        return FloatDistribution(*dimension.log_uniform, log=True)
    assert dimension.uniform is not None
    return FloatDistribution(*dimension.uniform)


def build_study(
    search: SearchConfig, space: Space, seed: int, stored: Sequence[StoredTrial]
) -> optuna.Study:
    """A study that knows what the store knows.

    Trials keep their numbers: a finished one is added with its state, an unfinished one, or a
    number whose run was never made, waits and is asked for first. The sampler's seed moves on with
    the trials stored, so that a resumed search does not draw its first random points again.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed = seed + len(stored)
    sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed)
    if search.sampler.name == "tpe":
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=search.sampler.startup_trials
        )
    study = optuna.create_study(sampler=sampler, direction="minimize")
    by_number = {trial.number: trial for trial in stored}
    for number in range(max(by_number, default=-1) + 1):
        study.add_trial(_frozen(by_number.get(number), space))
    return study


def _frozen(stored: StoredTrial | None, space: Space) -> optuna.trial.FrozenTrial:
    if stored is None:
        return create_trial(state=TrialState.WAITING)
    if stored.state is None:
        fixed = {"fixed_params": stored.values}
        return create_trial(state=TrialState.WAITING, system_attrs=fixed)
    return create_trial(
        state=STATES[stored.state],
        params=stored.values,
        distributions={key: space.distributions[key] for key in stored.values},
        value=None if stored.state == "failed" else stored.objective,
        intermediate_values=stored.curve,
    )


@dataclass
class _Asked:
    """A trial that the study was asked for."""

    trial: optuna.Trial
    values: dict[str, Any]
    run: Future[str]
    """Done when its run is stored."""
    tokens: int = 0
    reported: set[int] = field(default_factory=set)
    retries: int = 0


class StudySearcher(Searcher):
    """Lets Ray Tune ask an Optuna study, and tells the study how each trial really ended.

    Tune's own OptunaSearch tells an early-stopped trial as complete with its low-budget value, and
    cannot start from stored trials of a conditional space. A trial that crashed is handed out again
    under its number, to go on from its last checkpoint: Tune's own retries leave out trials that
    die while they start. A trial is handed out once its run is stored; Tune does not wait for that.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        *,
        trials: int,
        retries: int,
        open_run: Callable[[int, dict[str, Any]], Future[str]],
        max_tokens: int | None = None,
        spent: int = 0,
    ) -> None:
        """Hand out `trials`, fewer if with the `spent` ones they reach `max_tokens`."""
        super().__init__(metric="objective", mode="min")
        self._study, self._space, self._open_run = study, space, open_run
        self._left, self._retries = trials, retries
        self._max_tokens, self._spent = max_tokens, spent
        self._ready: list[_Asked] = []
        """To be handed out: trials that crashed first, then at most one new one."""
        self._running: dict[str, _Asked] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's number and values; None: not yet, FINISHED: none follows."""
        if not self._ready and self._may_ask():
            self._ready.append(self._ask())
        if not self._ready:
            return None if self._running else Searcher.FINISHED
        asked = self._ready[0]
        wait([asked.run], timeout=BRIEFLY_SECONDS if self._running else None)
        if not asked.run.done():
            return None
        asked.run.result()  # raises if the store refused
        self._running[trial_id] = self._ready.pop(0)
        return {"number": asked.trial.number, "values": asked.values}

    def _may_ask(self) -> bool:
        running = sum(asked.tokens for asked in self._running.values())
        if self._max_tokens is not None and self._spent + running >= self._max_tokens:
            return bool(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
        return self._left > 0

    def _ask(self) -> _Asked:
        self._left -= 1
        trial = self._study.ask()
        values = self._space.suggest(trial)
        return _Asked(trial, values, self._open_run(trial.number, values))

    def retries(self, number: int) -> int:
        """How often a trial that waits to start again will have been retried; of others 0."""
        return sum(asked.retries for asked in self._ready if asked.trial.number == number)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Intermediate values, at the tokens they were reached."""
        self._report(self._running[trial_id], result)

    def _report(self, asked: _Asked, result: Mapping[str, Any]) -> None:
        asked.tokens = result["tokens"]
        for tokens, value in result["curve"]:
            if tokens not in asked.reported:  # a trial that starts again replays its history
                asked.reported.add(tokens)
                asked.trial.report(value, tokens)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Complete only if the budget was used; pruned if it was stopped; else failed."""
        asked = self._running.pop(trial_id, None)
        if asked is None:
            return
        if error and asked.retries < self._retries:
            asked.retries += 1
            self._ready.insert(0, asked)
            return
        if error or not result or "objective" not in result:
            self._study.tell(asked.trial, state=TrialState.FAIL)
        else:
            self._report(asked, result)
            state = None if result["finished"] else TrialState.PRUNED
            value = result["objective"] if result["finished"] else None
            self._study.tell(asked.trial, value, state=state)
        self._spent += asked.tokens

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the tracking store is the memory of a search."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a resumed search makes a new searcher from the tracking store."""
