"""The Optuna side of the search: the space, the sampler, and a study rebuilt from stored trials."""

import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from pipelines.search.config import SearchConfig, SearchTask
from pipelines.search.resume import StoredTrial
from pipelines.search.space import Space

STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


MEDIAN_TRIALS = 4
"""Completed trials before median stopping compares with them."""
FEWEST_SOURCES = 10
"""Trials of which a tenth is one."""


def build_study(
    task: SearchTask,
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
    search = task.search
    _quieten()
    known = [_frozen(trial, space) for trial in earlier]
    by_number = {trial.number: trial for trial in stored}
    points = _points(search, space, task.base.seed)
    for number in range(max(*by_number, len(points) - 1, -1) + 1):
        if number in by_number:
            known.append(_frozen(by_number[number], space))
        else:
            known.append(_waiting(points[number] if number < len(points) else {}))
    study = optuna.create_study(
        sampler=_sampler(search, task.base.seed + len(stored), known),
        pruner=_pruner(task),
        directions=_directions(search),
    )
    study.add_trials(known)
    return study


def _quieten() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def _directions(search: SearchConfig) -> list[str]:
    return ["minimize", *SECOND_DIRECTION[search.second_objective]]


def save_study(path: Path, task: SearchTask, trials: Sequence[StoredTrial]) -> None:
    """Write ended trials into a SQLite file, as a study that Optuna and optuna-dashboard open."""
    _quieten()
    space, second = Space(task), task.search.second_objective
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    study = optuna.create_study(
        study_name=task.experiment, storage=storage, directions=_directions(task.search)
    )
    study.set_metric_names([task.base.train.best_metric, *([second] if second else [])])
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


def _pruner(task: SearchTask) -> optuna.pruners.BasePruner:
    """Median stopping; ASHA is Tune's, which knows a rung's trials before they have ended."""
    if task.search.scheduler.name != "median":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(
        n_startup_trials=MEDIAN_TRIALS, n_warmup_steps=grace_tokens(task)
    )


def grace_tokens(task: SearchTask) -> int:
    """Bytes that a trial trains on before it may be stopped."""
    steps = task.base.train.eval_steps
    grace = min(task.search.scheduler.grace_evals, len(steps))
    return steps[grace - 1] * task.base.train.batch_tokens


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
