"""The search space: which keys can be searched, what is wrong with a space, and its points.

Used by the experiment: each searched key is checked by itself, and so are search.try_first and up
to 1000 grid points, as a trial and as the fit; other combinations are validated when their trial
starts. Also by the search, which draws points, and by the sweep, which estimates the memory of the
largest.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from graphlib import CycleError
from itertools import islice
from typing import TYPE_CHECKING, Any

from dca.errors import FieldError
from pipelines.config.yaml_text import flatten
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import nearest
from pipelines.search.config import (
    Choice,
    Dimension,
    SearchConfig,
    SearchTask,
    condition_order,
)
from pipelines.training.config import SCHEDULE_OPTIONS, FitConfig, TrainingRun
from pipelines.training.memory import peak_bytes

if TYPE_CHECKING:
    import optuna

RUN_KEYS = list(dict(flatten(TrainingRun().model_dump(mode="json"))))
"""Keys that one training run reads."""
TRAINING_KEYS = [key for key in RUN_KEYS if key.startswith(("model.", "train."))]
"""Keys of the model and its training: all but the fixed ones can be searched."""
FIXED = {
    *("train.start_from", "train.tokens", "train.seq_len", "train.evals", "train.eval_tokens"),
    *("train.best_metric", "train.patience", "train.log_every_steps"),
}
"""Keys in which trials must agree to be comparable: they cannot be searched."""
MAX_CHECKED_POINTS = 1000
"""Points of a grid that are validated before the search."""
INACTIVE = object()
"""Value of a searched key whose condition is not met: equal to no value of a condition."""


class Space:
    """The points of a search space. A conditional key comes after the keys it depends on."""

    def __init__(self, task: SearchTask) -> None:
        space = task.search.space
        self._base = task.base
        self._dimensions = {key: space[key] for key in condition_order(space)}

    def suggest(self, trial: "optuna.Trial") -> dict[str, Any]:
        """Values of the keys whose conditions are met, drawn by a study's sampler."""
        return self.point(lambda key, dimension: _suggest(trial, key, dimension))

    def point(self, value_of: Callable[[str, Dimension], Any]) -> dict[str, Any]:
        """Values of the keys whose conditions are met, each from a function of key and range."""
        values: dict[str, Any] = {}
        for key, dimension in self._dimensions.items():
            if all(self._value(k, values) == wanted for k, wanted in dimension.when.items()):
                values[key] = value_of(key, dimension)
        return values

    def _value(self, key: str, values: Mapping[str, Any]) -> Any:
        if key in self._dimensions:
            return values.get(key, INACTIVE)
        return self._base.get(key)

    def inactive(self, values: Mapping[str, Any]) -> list[str]:
        """Searched keys that have no value in this point."""
        return [key for key in self._dimensions if key not in values]


def _suggest(trial: "optuna.Trial", key: str, dimension: Dimension) -> Any:
    if dimension.choice is not None:
        return trial.suggest_categorical(key, dimension.choice)
    if dimension.int is not None:
        return trial.suggest_int(key, *dimension.int)
    if dimension.log_uniform is not None:
        return trial.suggest_float(key, *dimension.log_uniform, log=True)
    assert dimension.uniform is not None
    return trial.suggest_float(key, *dimension.uniform)


def largest_trial(task: SearchTask) -> TrainingRun:
    """The configuration of the space that needs most memory, found one key after the other."""
    largest = task.base
    for key in condition_order(task.search.space):
        dimension = task.search.space[key]
        ends = dimension.choice or dimension.int or ()
        reachable = all(
            k in task.search.space or largest.get(k) == v for k, v in dimension.when.items()
        )
        points = [{**dimension.when, key: end} for end in ends] if reachable else []
        sizes = [*([largest] if dimension.when else []), *_valid_runs(largest, points)]
        largest = max(sizes, key=lambda run: peak_bytes(run, on_gpu=False), default=largest)
    return largest


def _valid_runs(run: TrainingRun, points: Iterable[Mapping[str, Any]]) -> Iterator[TrainingRun]:
    """The run with the values of each point; invalid combinations are left out."""
    for values in points:
        with suppress(ConfigError):
            yield run.replace(values)


def space_problems(
    space: Mapping[str, Dimension], base: TrainingRun, fit: FitConfig
) -> Iterator[Problem]:
    """What is wrong with a space, each of its keys tried on the base, as a trial and as a fit."""
    try:
        condition_order(space)
    except CycleError as error:
        yield Problem(f"cyclic `when` conditions: {' -> '.join(error.args[1])}", "search.space")

    @lru_cache(maxsize=None, typed=True)  # keys share conditions; true is not 1
    def wrong_value(other: str, wanted: Choice) -> tuple[Problem, ...]:
        return tuple(_invalid_point(base, fit, [{other: wanted}]))

    for key, dimension in space.items():
        where = f"search.space.{key}"
        if not key.startswith(("model.", "train.")):
            message = "expected a key of model or train"
            yield Problem(message, where, nearest=nearest(key, RUN_KEYS))
        elif key in FIXED:
            yield Problem("cannot be searched: trials would no longer be comparable", where)
        elif key not in RUN_KEYS:
            message = "no such configuration key"
            yield Problem(message, where, nearest=nearest(key, RUN_KEYS))
        else:
            wrong = list(_condition_problems(key, dimension.when, wrong_value))
            met = {} if wrong else dimension.when
            points = ({**met, key: value} for value in dimension.examples)
            yield from (problem.at(where) for problem in _invalid_point(base, fit, points))
            yield from (problem.at(f"{where}.when") for problem in wrong)


def unused_options(space: Mapping[str, Dimension], base: TrainingRun) -> Iterator[Problem]:
    """Options that are given, or searched, although no trial has a schedule that reads them."""
    searched = space.get("train.schedule")
    possible = set(searched.choice or []) if searched else {base.train.schedule}
    for key, schedules in SCHEDULE_OPTIONS.items():
        given = [key] if base.get(key) is not None else []
        given += [f"search.space.{key}"] if key in space else []
        if not possible & schedules:
            names = ", ".join(sorted(map(str, possible)))
            yield from (Problem(f"expected null with schedule = {names}", one) for one in given)


def _condition_problems(
    key: str,
    when: Mapping[str, Choice],
    wrong_value: Callable[[str, Choice], Iterable[Problem]],
) -> Iterator[Problem]:
    for other, wanted in when.items():
        if other not in RUN_KEYS:
            message = f"{other} is no configuration key of a training run"
            yield Problem(message, nearest=nearest(other, RUN_KEYS))
        elif other == key:
            yield Problem("a key cannot depend on itself")
        else:
            yield from wrong_value(other, wanted)


def listed_point_problems(
    search: SearchConfig, base: TrainingRun, fit: FitConfig
) -> Iterator[Problem]:
    """The first invalid point of a grid, or of search.try_first."""
    grid = search.sampler.name == "grid"
    points = search.grid_points if grid else search.try_first
    where = "search.space" if grid else "search.try_first"
    for problem in _invalid_point(base, fit, islice(points, MAX_CHECKED_POINTS)):
        found = problem.at(where)
        yield replace(found, message=f"invalid point of the search space: {found.message}")


def _invalid_point(
    base: TrainingRun, fit: FitConfig, points: Iterable[Mapping[str, Choice]]
) -> Iterator[Problem]:
    """What is wrong with the first of some points that is no valid trial, or no valid fit."""
    # No searched key depends on this list, which would be validated again for each point.
    model = replace(base.model, attention_windows=(None,))
    bare = base.model_copy(update={"model": model})
    for point in points:
        try:
            fit.check(bare.replace(point).train)
        except ConfigError as error:
            yield error.problems[0]
            return
        except FieldError as error:
            yield Problem(error.message, error.field, nearest=error.nearest)
            return
