"""The Optuna study of a search: its sampler and pruner, and the stored trials it is built from.

Used by `run` before a search, by the cost estimate, and by the stage after the search, which saves
the study as a file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain, count, islice
from pathlib import Path
from random import Random
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
from pipelines.console.errors import Problem
from pipelines.search.config import Dimension, SearchTask
from pipelines.search.space import MAX_LOOKED_AT, Space, point_key, with_required
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
GIVEN = "given"
"""Attribute of one of the points that do not depend on results: its values, to which others are
sampled if they are not all."""
MAX_LISTED = 20_000
"""Points of a grid that are looked at for valid ones."""
MAX_ASKS = 10
"""Proposals in a row that are invalid or equal to earlier ones, after which a random point is
proposed that is neither. One is enough of gp, which takes seconds and makes the same one again."""
MAX_DRAWN, MAX_RELATED = 200, 2000
"""Random points, and those of `draw_related`, among which one is looked for before the points of a
finite space in its order."""
MAX_BESIDE = 2000
"""Points beside valid ones among which one is looked for last."""
MEDIAN_TRIALS = 4
"""Completed trials with a value at the same tokens before median stopping compares with them. An
equal proposal, which ends with the result of another, has none."""
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
        points = _listed_points(task, stored)
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
    for point in points:
        study.enqueue_trial(point, user_attrs={GIVEN: point})
    return study


@dataclass(frozen=True)
class Proposal:
    """The next trial: of the study, and its values."""

    trial: optuna.Trial
    values: dict[str, Any]
    number: int | None
    """That of the stored trial which it goes on with, if any."""


@dataclass(frozen=True)
class _Known:
    """How a trial ended, to be told for an equal one."""

    state: TrialState
    values: list[float] | None = None
    curve: Mapping[int, float] = field(default_factory=dict)


class Proposals:
    """The trials that a study proposes, without invalid ones and those that train as earlier ones.

    Used by the searcher and the cost estimate. An invalid point is reported to the study as pruned
    without a value, which tpe and cmaes rank behind every result, and as failed, which all ignore,
    until they have their startup trials. gp ignores both. An equal one is reported with the result
    known.
    """

    def __init__(
        self,
        study: optuna.Study,
        task: SearchTask,
        stored: Sequence[StoredTrial],
        left_out: Callable[[Mapping[str, Any], str], None] = lambda values, problem: None,
    ) -> None:
        """`left_out` is called with the values and the problem, empty if the point is not new."""
        self._study, self._space, self._left_out = study, Space(task), left_out
        self._startup = task.search.sampler.startup_trials
        self._max_asks = 1 if task.search.sampler.name == "gp" else MAX_ASKS
        self._rng = Random(task.base.seed + len(stored))
        self._known = {
            self._space.training_key(one.values): _known(one) for one in stored if one.state
        }
        self._valid = [one.values for one in stored if self._space.is_valid(one.values)]

    def next(self) -> Proposal | None:
        """The next trial; None if no further point was found: a finite space may have none."""
        for asked in count(1):
            trial = self._study.ask()
            values = self._space.suggest(trial)
            number = trial.user_attrs.get(NUMBER)
            if number is not None:  # it has begun
                break
            problem = None if self._space.is_valid(values) else self._space.problem(values)
            if problem is None and self._space.training_key(values) not in self._known:
                break
            self._leave_out(trial, values, problem)
            if (given := trial.user_attrs.get(GIVEN)) is not None:
                if len(given) < len(values) and (point := self._new_point(given)):
                    self._study.enqueue_trial(point, user_attrs={GIVEN: given})
            elif asked % self._max_asks == 0:
                point = self._new_point()
                if point is None:
                    return None
                self._study.enqueue_trial(point)
        key = self._space.training_key(values)
        self._known[key] = _Known(TrialState.FAIL)  # until it has ended
        self._valid.append(values)
        return Proposal(trial, values, None if number is None else int(number))

    def tell(
        self, proposal: Proposal, state: TrialState, values: list[float] | None = None
    ) -> None:
        """Report how a trial ended. Optuna takes a pruned one's value from its last report."""
        ended = self._study.tell(proposal.trial, values, state)
        curve = {} if values else ended.intermediate_values
        self._known[self._space.training_key(proposal.values)] = _Known(state, values, curve)

    def _leave_out(
        self, trial: optuna.Trial, values: Mapping[str, Any], problem: Problem | None
    ) -> None:
        self._left_out(values, str(problem or ""))
        if problem is None:
            known = self._known[self._space.training_key(values)]
            for tokens, value in known.curve.items():
                trial.report(value, tokens)
            self._study.tell(trial, known.values, known.state)
            return
        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        learns = len(complete) >= self._startup
        self._study.tell(trial, state=TrialState.PRUNED if learns else TrialState.FAIL)

    def _new_point(self, given: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """A random valid point that is new, or else the first one of a finite space.

        With `given` values it has these; the points that the check of try_first has tried are tried
        too. Where valid points are so rare that none is found, one is looked for beside those that
        are known: there are always some if a key has real numbers.
        """
        points = (self._space.draw(self._rng, given) for _ in range(MAX_DRAWN))
        related = (self._space.draw_related(self._rng, given) for _ in range(MAX_RELATED))
        rest = self._space.points() if self._space.is_finite else iter(())
        beside = self._beside_valid() if given is None else iter(())
        if given is not None:
            rest = self._space.some_points(given)
        refused: set[str] = set()  # of a small space most points are drawn many times
        for point in chain(points, related, islice(rest, MAX_LOOKED_AT), beside):
            if (drawn := point_key(point)) in refused:
                continue
            if self._space.is_valid(point) and self._space.training_key(point) not in self._known:
                return point
            refused.add(drawn)
        return None

    def _beside_valid(self) -> Iterator[dict[str, Any]]:
        """Points that differ from a valid one in a key; in a space that has been looked through
        there are none that are new."""
        if self._space.is_finite and self._space.has_few({}):
            return
        if not self._valid:
            every = self._space.some_points({})  # of which the check of the space has found one
            self._valid += islice(filter(self._space.is_valid, every), 1)
            yield from self._valid
        for _ in range(MAX_BESIDE if self._valid else 0):
            yield self._space.redraw(self._rng, self._rng.choice(self._valid))


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
        return IntDistribution(*dimension.int, log=dimension.log, step=dimension.step)
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
        # By itself it samples several objectives' keys one by one, which suits conditions too.
        group = Space(task).is_conditional and task.search.second_objective is None
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, group=group)
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
        n_startup_trials=MEDIAN_TRIALS,
        n_warmup_steps=task.grace_tokens,
        n_min_trials=MEDIAN_TRIALS,
    )


def _listed_points(task: SearchTask, stored: Sequence[StoredTrial]) -> list[dict[str, Any]]:
    """The points that do not depend on results and that no stored trial has, in order.

    They are as many as trials are missing, with the invalid ones between them, and are computed
    again by a resumed search, so that no sampler needs a stored state.
    """
    search, space = task.search, Space(task)
    missing = max(0, search.trial_count - len(stored))
    first = [with_required(search.space, point) for point in search.try_first]
    points, left = _missing_points(first, stored)
    points = points[:missing]
    missing -= len(points)
    known = {space.training_key(values) for values in left}
    others: Iterator[dict[str, Any]] = iter(())
    if search.sampler.name == "grid":
        others = islice(search.grid_points, MAX_LISTED)
    elif search.sampler.name == "qmc":
        drawn = compat.quasi_random_points(distributions(task), task.base.seed)
        others = islice(drawn, MAX_ASKS * search.trial_count)
    for point in others:
        if missing <= 0:
            break
        if (key := space.training_key(point)) not in known:
            known.add(key)
            points.append(point)
            missing -= space.is_valid(point)
    return points


def _missing_points(
    points: Sequence[dict[str, Any]], stored: Sequence[StoredTrial]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The points that no stored trial has, and the values of the trials that have none of them.

    Each trial stands for one point. A point's trial has its place in the order as its number,
    unless the search has grown.
    """
    left, missing = {trial.number: trial.values for trial in stored}, {}
    for place, point in enumerate(points):
        if place in left and point.items() <= left[place].items():
            del left[place]
        else:
            missing[place] = point
    for place, point in list(missing.items()):
        same = [number for number, values in left.items() if point.items() <= values.items()]
        if same:
            del left[same[0]], missing[place]
    return list(missing.values()), list(left.values())


def _known(stored: StoredTrial) -> _Known:
    state = OPTUNA_STATES[str(stored.state)]
    if state == TrialState.PRUNED:
        return _Known(state, curve=stored.curve)
    values = [value for value in (stored.objective, stored.second) if value is not None]
    return _Known(state, values if state == TrialState.COMPLETE else None)


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
