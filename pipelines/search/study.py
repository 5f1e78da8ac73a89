"""The Optuna study of a search: its sampler and pruner, and the stored trials it is built from.

Used by `run` before a search, by the cost estimate, and by the stage after the search, which saves
the study as a file.
"""

from collections.abc import Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from pipelines.compat import optuna as compat
from pipelines.search.config import Dimension, SearchTask
from pipelines.tracking.trials import StoredTrial
from pipelines.tracking.uri import database_uri

OPTUNA_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
SECOND_DIRECTIONS = {None: [], "parameters": ["minimize"], "bytes_per_second": ["maximize"]}
NUMBER = "number"
"""Attribute of an enqueued trial of the study: the number of the stored trial that it is."""
MEDIAN_TRIALS = 4
"""Completed trials before median stopping compares with them."""
MIN_SOURCE_TRIALS = 10
"""Trials from which CMA-ES estimates its start: it takes the best tenth, one of ten."""


def build_study(
    task: SearchTask, stored: Sequence[StoredTrial], warm_start: Sequence[StoredTrial] = ()
) -> optuna.Study:
    """A study with the trials of the tracking store, whose next `ask` continues the search.

    The `warm_start` trials, of other searches, come first. Those of this search follow in the order
    of their numbers: an ended trial is added with its state, an unfinished one is enqueued with its
    number as the attribute NUMBER. Then come the points that do not depend on results and that no
    stored trial has, so that `ask` returns unfinished trials first and these next.

    The sampler's seed is that of the experiment plus the number of stored trials, so that a resumed
    search does not draw its first random points again.
    """
    ranges = distributions(task)
    known = [*warm_start, *stored]
    ended = [_as_optuna(trial, ranges) for trial in known if trial.state is not None]
    with compat.quiet():
        points = _missing_points(_fixed_points(task, ranges), stored)
        study = optuna.create_study(
            sampler=_sampler(task, task.base.seed + len(stored), ended),
            pruner=_pruner(task),
            directions=_directions(task),
        )
    for trial in known:
        if trial.state is None:
            study.enqueue_trial(trial.values, user_attrs={NUMBER: trial.number})
        else:
            study.add_trial(_as_optuna(trial, ranges))
    for point in points[: max(0, task.search.trial_count - len(stored))]:
        study.enqueue_trial(point)
    return study


def save_study(path: Path, task: SearchTask, trials: Sequence[StoredTrial]) -> None:
    """Write ended trials into a SQLite file, as a study for Optuna and optuna-dashboard."""
    ranges, second = distributions(task), task.search.second_objective
    with compat.quiet():
        storage = optuna.storages.RDBStorage(database_uri(path))
        study = optuna.create_study(
            study_name=task.experiment, storage=storage, directions=_directions(task)
        )
        study.set_metric_names([task.base.train.best_metric, *([second] if second else [])])
        for stored in trials:
            trial = _as_optuna(stored, ranges)
            started, ended = (datetime.fromtimestamp(ms / 1000) for ms in stored.milliseconds)
            compat.set_times(trial, started, ended)
            trial.set_user_attr("mlflow_run", stored.run_id)
            if stored.reason:
                trial.set_user_attr("reason", stored.reason)
            study.add_trial(trial)
        compat.close(storage)


def distributions(task: SearchTask) -> dict[str, BaseDistribution]:
    """The range of each searched key, as Optuna's."""
    return {key: distribution(dimension) for key, dimension in task.search.space.items()}


def distribution(dimension: Dimension) -> BaseDistribution:
    """The range of a searched key, without its conditions."""
    if dimension.choice is not None:
        return CategoricalDistribution(dimension.choice)
    if dimension.int is not None:
        return IntDistribution(*dimension.int)
    if dimension.log_uniform is not None:
        return FloatDistribution(*dimension.log_uniform, log=True)
    assert dimension.uniform is not None
    return FloatDistribution(*dimension.uniform)


def _directions(task: SearchTask) -> list[str]:
    return ["minimize", *SECOND_DIRECTIONS[task.search.second_objective]]


def _sampler(
    task: SearchTask, seed: int, known: Sequence[FrozenTrial]
) -> optuna.samplers.BaseSampler:
    name, startup = task.search.sampler.name, task.search.sampler.startup_trials
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup)
    if name == "cmaes":
        return compat.cma_es(seed, startup, **_cma_es_start(known))
    return optuna.samplers.RandomSampler(seed=seed)


def _cma_es_start(known: Sequence[FrozenTrial]) -> dict[str, Any]:
    """Arguments of CMA-ES's start. Its distribution is not stored, so it is estimated from the best
    tenth of the trials (arXiv 2012.06932), or centred on the best one while they are few."""
    ranked = [t for t in known if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    if len(ranked) >= MIN_SOURCE_TRIALS:
        return {"source_trials": ranked}
    return {"x0": min(ranked, key=lambda t: t.value).params} if ranked else {}


def _pruner(task: SearchTask) -> optuna.pruners.BasePruner:
    """The study's pruner, for median stopping only: ASHA runs in Tune, with the running trials."""
    if task.search.scheduler.name != "median":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(
        n_startup_trials=MEDIAN_TRIALS, n_warmup_steps=task.grace_tokens
    )


def _fixed_points(task: SearchTask, ranges: dict[str, BaseDistribution]) -> list[dict[str, Any]]:
    """The points that do not depend on results, in order.

    They are computed again by a resumed search, so that no sampler needs a stored state.
    """
    search = task.search
    if search.sampler.name == "grid":
        return list(islice(search.grid_points, search.trial_count))
    if search.sampler.name != "qmc":
        return list(search.try_first)
    drawn = compat.quasi_random_points(ranges, search.trial_count, task.base.seed)
    return [*search.try_first, *drawn][: search.trial_count]


def _missing_points(
    points: Sequence[dict[str, Any]], stored: Sequence[StoredTrial]
) -> list[dict[str, Any]]:
    """The points that no stored trial has, each trial standing for one of them.

    A point's trial has its place in the order as its number, unless the search has grown.
    """
    left, missing = {trial.number: trial.values for trial in stored}, {}
    for place, point in enumerate(points):
        if point.items() <= left.get(place, {}).items():
            del left[place]
        else:
            missing[place] = point
    for place, point in list(missing.items()):
        same = [number for number, values in left.items() if point.items() <= values.items()]
        if same:
            del left[same[0]], missing[place]
    return list(missing.values())


def _as_optuna(stored: StoredTrial, ranges: dict[str, BaseDistribution]) -> FrozenTrial:
    """An ended trial with its state, objectives and evaluations."""
    several = stored.second is not None
    values = [stored.objective, stored.second] if several else [stored.objective]
    return create_trial(
        state=OPTUNA_STATES[str(stored.state)],
        params=stored.values,
        distributions={key: ranges[key] for key in stored.values},
        values=None if stored.state == "failed" or None in values else values,
        intermediate_values={} if several else stored.curve,
    )
