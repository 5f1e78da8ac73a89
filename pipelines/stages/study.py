"""The Optuna side of the search: the space, the sampler, and a study rebuilt from stored trials."""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial
from ray.tune.search import Searcher

from pipelines.runtime.config import Config, Dimension, SearchConfig, condition_order
from pipelines.runtime.space import distribution

STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


MEDIAN_TRIALS = 4
"""Completed trials before median stopping compares with them."""
FEWEST_SOURCES = 10
"""Trials of which a tenth is one."""
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
    second: float | None = None
    """The value of search.second_objective."""
    tokens: int = 0
    curve: dict[int, float] = field(default_factory=dict)
    """Best objective so far by tokens, at each evaluation."""
    reason: str = ""
    status: str = ""
    """MLflow's: RUNNING, FINISHED, FAILED or KILLED."""
    milliseconds: tuple[int, int] = (0, 0)
    """When it started and ended, since 1970."""


class Space:
    """A search space with conditions, in an order that knows a key before what depends on it."""

    def __init__(self, config: Config) -> None:
        space = config.search.space
        self._config = config
        self._dimensions = {key: space[key] for key in condition_order(space)}
        self.distributions = {key: distribution(space[key]) for key in space}

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


def build_study(
    config: Config,
    space: Space,
    stored: Sequence[StoredTrial],
    earlier: Sequence[StoredTrial] = (),
) -> optuna.Study:
    """A study that knows what the store knows.

    First come the trials of `earlier` searches; those of this one follow and keep their numbers: a
    finished one is added with its state, an unfinished one, or a number whose run was never made,
    waits and is asked for first. So do the points that are known beforehand. The sampler's seed
    moves on with the trials stored, so that a resumed search does not draw its first random points
    again.
    """
    search = config.search
    _quieten()
    known = [_frozen(trial, space) for trial in earlier]
    by_number = {trial.number: trial for trial in stored}
    points = _points(search, space, config.seed)
    for number in range(max(*by_number, len(points) - 1, -1) + 1):
        if number in by_number:
            known.append(_frozen(by_number[number], space))
        else:
            known.append(_waiting(points[number] if number < len(points) else {}))
    study = optuna.create_study(
        sampler=_sampler(search, config.seed + len(stored), known),
        pruner=_pruner(config),
        directions=_directions(search),
    )
    study.add_trials(known)
    return study


def _quieten() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def _directions(search: SearchConfig) -> list[str]:
    return ["minimize", *SECOND_DIRECTION[search.second_objective]]


def save_study(path: Path, config: Config, trials: Sequence[StoredTrial]) -> None:
    """Write ended trials into a SQLite file, as a study that Optuna and optuna-dashboard open."""
    _quieten()
    space, second = Space(config), config.search.second_objective
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    study = optuna.create_study(
        study_name=config.experiment, storage=storage, directions=_directions(config.search)
    )
    study.set_metric_names([config.train.best_metric, *([second] if second else [])])
    for stored in trials:
        trial = _frozen(stored, space)
        begun, ended = (datetime.fromtimestamp(ms / 1000) for ms in stored.milliseconds)
        trial.datetime_start, trial.datetime_complete = begun, ended
        trial.set_user_attr("mlflow_run", stored.run_id)
        if stored.reason:
            trial.set_user_attr("reason", stored.reason)
        study.add_trial(trial)
    storage.engine.dispose()


SECOND_DIRECTION = {None: [], "parameters": ["minimize"], "bytes_per_second": ["maximize"]}


def second_value(
    config: Config, values: Mapping[str, Any], metrics: Mapping[str, float]
) -> float | None:
    """A trial's search.second_objective, from its last metrics; None if the search has none."""
    if config.search.second_objective == "parameters":
        return config.replace(values).model.parameter_count()
    if config.search.second_objective == "bytes_per_second" and metrics.get("seconds"):
        return metrics["tokens"] / metrics["seconds"]
    return None


def _sampler(
    search: SearchConfig, seed: int, known: Sequence[optuna.trial.FrozenTrial]
) -> optuna.samplers.BaseSampler:
    startup = search.sampler.startup_trials
    if search.sampler.name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
    if search.sampler.name == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup)
    if search.sampler.name == "cmaes":
        return optuna.samplers.CmaEsSampler(
            seed=seed, n_startup_trials=startup, consider_pruned_trials=True, **_start(known)
        )
    return optuna.samplers.RandomSampler(seed=seed)


def _start(known: Sequence[optuna.trial.FrozenTrial]) -> dict[str, Any]:
    """Where CMA-ES begins: no stored trial remembers its distribution, so it is estimated from
    the best tenth of them (arXiv 2012.06932), or lies around the best one while they are few."""
    ranked = [t for t in known if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    if len(ranked) >= FEWEST_SOURCES:
        return {"source_trials": ranked}
    return {"x0": min(ranked, key=lambda t: t.value).params} if ranked else {}


def _pruner(config: Config) -> optuna.pruners.BasePruner:
    """Median stopping; ASHA is Tune's, which knows a rung's trials before they have ended."""
    if config.search.scheduler.name != "median":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(
        n_startup_trials=MEDIAN_TRIALS, n_warmup_steps=grace_tokens(config)
    )


def grace_tokens(config: Config) -> int:
    """Bytes that a trial trains on before it may be stopped."""
    steps = config.train.eval_steps
    grace = min(config.search.scheduler.grace_evals, len(steps))
    return steps[grace - 1] * config.train.batch_tokens


def _points(search: SearchConfig, space: Space, seed: int) -> list[dict[str, Any]]:
    """What is to be tried whatever comes out, by trial number: kept in no study's memory, and the
    same after a resume."""
    if search.sampler.name == "grid":
        return list(islice(search.grid_points, search.trial_count))
    if search.sampler.name != "qmc":
        return search.try_first
    sampler = optuna.samplers.QMCSampler(seed=seed, scramble=True)
    study, trial = optuna.create_study(), create_trial(state=TrialState.WAITING)
    drawn = [
        sampler.sample_relative(study, trial, space.distributions)
        for _ in range(search.trial_count)
    ]
    return [*search.try_first, *drawn][: search.trial_count]


def _waiting(values: Mapping[str, Any]) -> optuna.trial.FrozenTrial:
    """A trial to be asked for, with what is decided of it."""
    return create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": dict(values)})


def _frozen(stored: StoredTrial, space: Space) -> optuna.trial.FrozenTrial:
    if stored.state is None:
        return _waiting(stored.values)
    multiple = stored.second is not None
    values = [stored.objective, stored.second] if multiple else [stored.objective]
    return create_trial(
        state=STATES[stored.state],
        params=stored.values,
        distributions={key: space.distributions[key] for key in stored.values},
        values=None if stored.state == "failed" or None in values else values,
        intermediate_values={} if multiple else stored.curve,
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
        config: Config,
        *,
        open_run: Callable[[int, dict[str, Any]], Future[str]],
        stored: Sequence[StoredTrial] = (),
        earlier: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """`earlier` trials of the study are not the search's own; `seconds` of it have passed."""
        super().__init__(metric="objective", mode="min")
        self._study, self._space, self._config = study, space, config
        self._open_run, self._earlier = open_run, earlier
        done = [trial for trial in stored if trial.state is not None]
        self._left = config.search.trial_count - len(done)
        numbers = max((trial.number for trial in stored), default=-1) + 1
        self._unfinished = numbers - len(done)
        """Trials that an earlier start has begun: no budget keeps them from their end."""
        self._spent = sum(trial.tokens for trial in done)
        self._seconds, self._started = seconds, math.inf
        self._ready: list[_Asked] = []
        """To be handed out: trials that crashed first, then at most one new one."""
        self._running: dict[str, _Asked] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's number and values; None: not yet, FINISHED: none follows."""
        self._started = min(self._started, time.monotonic())  # Ray's start leaves room for a trial
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
        return {"number": self._number(asked), "values": asked.values}

    def _number(self, asked: _Asked) -> int:
        return int(asked.trial.number) - self._earlier

    def _may_ask(self) -> bool:
        tokens = self._spent + sum(asked.tokens for asked in self._running.values())
        seconds = self._seconds + time.monotonic() - self._started
        return self._left > 0 and (
            self._unfinished > 0 or may_start(self._config.search, tokens, seconds)
        )

    def _ask(self) -> _Asked:
        self._left -= 1
        self._unfinished -= 1
        trial = self._study.ask()
        values = self._space.suggest(trial)
        return _Asked(trial, values, self._open_run(trial.number - self._earlier, values))

    def retries(self, number: int) -> int:
        """How often a trial that waits to start again will have been retried; of others 0."""
        return sum(asked.retries for asked in self._ready if self._number(asked) == number)

    def should_prune(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether the study's pruner would stop a trial with this result."""
        self._report(self._running[trial_id], result)
        return bool(self._running[trial_id].trial.should_prune())

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Intermediate values, at the tokens they were reached."""
        self._report(self._running[trial_id], result)

    def _report(self, asked: _Asked, result: Mapping[str, Any]) -> None:
        asked.tokens = result["tokens"]
        for tokens, value in result["curve"]:
            if tokens not in asked.reported:  # a trial that starts again replays its history
                asked.reported.add(tokens)
                if self._config.search.second_objective is None:
                    asked.trial.report(value, tokens)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Complete only if the budget was used; pruned if it was stopped; else failed."""
        asked = self._running.pop(trial_id, None)
        if asked is None:
            return
        if error and asked.retries < self._config.failures.retries:
            asked.retries += 1
            self._ready.insert(0, asked)
            return
        if error or not result or "objective" not in result:
            self._study.tell(asked.trial, state=TrialState.FAIL)
        else:
            self._report(asked, result)
            if result["finished"]:
                second = second_value(self._config, asked.values, result["rows"][-1])
                values = [result["objective"], *([] if second is None else [second])]
                self._study.tell(asked.trial, values)
            else:
                self._study.tell(asked.trial, state=TrialState.PRUNED)
        self._spent += asked.tokens

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the tracking store is the memory of a search."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a resumed search makes a new searcher from the tracking store."""


def may_start(search: SearchConfig, tokens: int, seconds: float) -> bool:
    """Whether the search's budgets allow another trial after so much."""
    return tokens < (search.max_tokens or math.inf) and seconds < (search.max_seconds or math.inf)
