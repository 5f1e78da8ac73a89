"""The search space: which keys can be searched, what is wrong with a space, and its points.

Used by the experiment, which refuses a space with a value that no point of it can have, or without
a valid point. Also by the search, which draws points and leaves out invalid ones, and by the sweep,
which estimates the memory of the largest.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, cached_property
from graphlib import CycleError
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, Any

from dca.errors import FieldError
from pipelines.config.schema import field_at, types
from pipelines.config.yaml_text import flatten
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import format_value, nearest, quote_value
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
MAX_SIZES = {"dim": 1 << 20, "depth": 2000, "ff_mult": 1024, "hyper_streams": 1024}
"""Largest values of keys of the model: what it takes is computed of a model with them, which has no
weights but must be made."""
MAX_CHECKED_POINTS = 1000
"""Points among which a space must have a valid one: all of a small space, random ones of another.
"""
MAX_TRIED = 200
"""Points among which a value that is invalid on the base must have a valid one: so many random
ones, and so many that differ from the base in one other key."""
MAX_BESIDE = 20
"""Valid ones among these whose memory is estimated."""
INACTIVE = object()
"""Value of a searched key whose condition is not met: equal to no value of a condition."""


class Space:
    """The points of a search space. A conditional key comes after the keys it depends on.

    A point is valid if it is one training run, by itself, and the fit can train it too.
    """

    def __init__(self, task: SearchTask) -> None:
        space = task.search.space
        self._base, self._fit = task.base, task.fit
        self._dimensions = {key: space[key] for key in condition_order(space)}

    @property
    def is_finite(self) -> bool:
        """Whether no key has real numbers."""
        return all(dimension.size is not None for dimension in self._dimensions.values())

    @property
    def is_conditional(self) -> bool:
        """Whether points differ in the keys that they have."""
        return any(
            key in self._dimensions
            for dimension in self._dimensions.values()
            for key in dimension.when
        )

    def suggest(self, trial: "optuna.Trial") -> dict[str, Any]:
        """Values of the keys whose conditions are met, drawn by a study's sampler."""
        return self.point(lambda key, dimension: _suggest(trial, key, dimension))

    def draw(self, rng: Random, given: Mapping[str, Choice] | None = None) -> dict[str, Any]:
        """A random point, with the `given` values of some keys."""
        fixed = given or {}
        return self.point(lambda key, one: fixed[key] if key in fixed else one.draw(rng))

    def point(self, value_of: Callable[[str, Dimension], Any]) -> dict[str, Any]:
        """Values of the keys whose conditions are met, each from a function of key and range."""
        values: dict[str, Any] = {}
        for key, dimension in self._dimensions.items():
            if self._is_active(dimension, values):
                values[key] = value_of(key, dimension)
        return values

    def points(self) -> Iterator[dict[str, Any]]:
        """Every point of a finite space, the last key changing fastest."""
        return self._points(list(self._dimensions.items()), {})

    def _points(
        self, left: Sequence[tuple[str, Dimension]], values: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        if not left:
            yield values
            return
        (key, dimension), *others = left
        if not self._is_active(dimension, values):
            yield from self._points(others, values)
            return
        for value in dimension.grid or ():
            yield from self._points(others, {**values, key: value})

    def some_points(self, count: int) -> Iterator[dict[str, Any]]:
        """All points of a finite space of at most `count`, else so many random ones."""
        sizes = [dimension.size or math.inf for dimension in self._dimensions.values()]
        if math.prod(sizes) <= count:
            return self.points()
        rng = Random(0)
        return (self.draw(rng) for _ in range(count))

    def is_valid(self, values: Mapping[str, Any]) -> bool:
        """Whether a point is a trial that the fit can train too, in a tenth of `problem`'s time."""
        try:
            self._fit.check(self._bare.replace(values, explain=False).train)
        except (ConfigError, FieldError):
            return False
        return True

    def problem(self, values: Mapping[str, Any]) -> Problem | None:
        """What is wrong with a point as a trial, or as the fit; None if it is valid."""
        try:
            self._fit.check(self._bare.replace(values).train)
        except ConfigError as error:
            return error.problems[0]
        except FieldError as error:
            return Problem(error.message, error.field, nearest=error.nearest)
        return None

    @cached_property
    def _bare(self) -> TrainingRun:
        """The base without a list that no searched key depends on, and each check would copy."""
        model = replace(self._base.model, attention_windows=(None,))
        return self._base.model_copy(update={"model": model})

    def _is_active(self, dimension: Dimension, values: Mapping[str, Any]) -> bool:
        return all(self._value(key, values) == wanted for key, wanted in dimension.when.items())

    def _value(self, key: str, values: Mapping[str, Any]) -> Any:
        if key in self._dimensions:
            return values.get(key, INACTIVE)
        return self._base.get(key)

    def inactive(self, values: Mapping[str, Any]) -> list[str]:
        """Searched keys that have no value in this point."""
        return [key for key in self._dimensions if key not in values]


def point_key(values: Mapping[str, Any]) -> str:
    """A text that is the same for equal points."""
    return json.dumps(values, sort_keys=True)


def _suggest(trial: "optuna.Trial", key: str, dimension: Dimension) -> Any:
    if dimension.choice is not None:
        return trial.suggest_categorical(key, dimension.choice)
    if dimension.int is not None:
        return trial.suggest_int(key, *dimension.int, step=dimension.step, log=dimension.log)
    if dimension.log_uniform is not None:
        return trial.suggest_float(key, *dimension.log_uniform, log=True)
    assert dimension.uniform is not None
    return trial.suggest_float(key, *dimension.uniform)


def largest_trial(task: SearchTask) -> TrainingRun:
    """The configuration of the space that needs most memory, found one key after the other.

    Where a value is invalid with those found so far, it is tried with each value of another key.
    """
    largest, space = task.base, task.search.space
    for key in condition_order(space):
        dimension = space[key]
        ends = _sizes(dimension)
        reachable = all(k in space or largest.get(k) == v for k, v in dimension.when.items())
        points = [{**dimension.when, key: end} for end in ends] if reachable else []
        sizes = [largest] if dimension.when else []
        for point in points:
            found = list(_valid_runs(largest, [point]))
            sizes += found or islice(_valid_runs(largest, _beside(space, point)), MAX_BESIDE)
            if found and type(point[key]) in (int, float):
                break
        largest = max(sizes, key=lambda run: peak_bytes(run, on_gpu=False), default=largest)
    return largest


def _sizes(dimension: Dimension) -> list[Choice]:
    """The values of a range that may need most memory: what is no number, then the numbers, the
    largest first, of which the first valid one counts. A model of each would take minutes."""
    values = list(dimension.choice or dimension.int or ())
    numbers = [one for one in values if isinstance(one, int | float) and not isinstance(one, bool)]
    others = [one for one in values if one is None or isinstance(one, bool | str)]
    return [*others, *sorted(numbers, reverse=True)]


def _valid_runs(run: TrainingRun, points: Iterable[Mapping[str, Any]]) -> Iterator[TrainingRun]:
    """The run with the values of each point; invalid combinations are left out."""
    for values in points:
        with suppress(ConfigError):
            yield run.replace(values)


def _beside(
    space: Mapping[str, Dimension], point: Mapping[str, Choice]
) -> Iterator[dict[str, Choice]]:
    """A point with each value of each other key, and what that key's conditions require."""
    for key, dimension in space.items():
        needed = {**required(space, key), **point}
        if key not in point and required(space, key).items() <= needed.items():
            yield from ({**needed, key: value} for value in dimension.examples)


def required(space: Mapping[str, Dimension], key: str) -> dict[str, Choice]:
    """The values of other keys that a searched key's conditions need, and theirs in turn.

    Raises FieldError if they contradict one another: the key can never apply.
    """
    found: dict[str, Choice] = {}
    left = list(space[key].when.items())
    while left:
        other, wanted = left.pop()
        if found.get(other, wanted) != wanted:
            both = f"{quote_value(found[other])} and {quote_value(wanted)}"
            raise FieldError("when", f"it can never apply: {other} would have to be {both}")
        if other not in found:
            found[other] = wanted
            left += space[other].when.items() if other in space else ()
    return found


def space_problems(
    space: Mapping[str, Dimension], base: TrainingRun, fit: FitConfig
) -> Iterator[Problem]:
    """What is wrong with a space: its keys, the values that no point can have, or all points."""
    wrong = {key: list(_key_problems(key, dimension)) for key, dimension in space.items()}
    for found in wrong.values():
        yield from found
    sound = {key: dimension for key, dimension in space.items() if not wrong[key]}
    try:
        condition_order(sound)
    except CycleError as error:
        yield Problem(f"cyclic `when` conditions: {' -> '.join(error.args[1])}", "search.space")
        return
    checks = _Values(sound, base, fit)
    found = [problem for key in sound for problem in checks.problems(key)]
    yield from found or (checks.no_point() if sound.keys() == space.keys() else ())


def _key_problems(key: str, dimension: Dimension) -> Iterator[Problem]:
    """What is wrong with a searched key and its range, whatever the other keys are."""
    where = f"search.space.{key}"
    if not key.startswith(("model.", "train.")):
        yield Problem("expected a key of model or train", where, nearest=nearest(key, RUN_KEYS))
    elif key in FIXED:
        yield Problem("cannot be searched: trials would no longer be comparable", where)
    elif key not in RUN_KEYS:
        yield Problem("no such configuration key", where, nearest=nearest(key, RUN_KEYS))
    real = dimension.uniform or dimension.log_uniform
    if real and key in RUN_KEYS and is_integer(key):
        ends = f"[{math.ceil(real[0])}, {math.floor(real[1])}]"
        log = ", log: true" if dimension.log_uniform else ""
        yield Problem(f"expected integers, as in {{int: {ends}{log}}}, got real numbers", where)
    limit, numbers = MAX_SIZES.get(key.removeprefix("model.")), dimension.choice or dimension.int
    largest = max((one for one in numbers or () if type(one) is int), default=0)
    if limit and largest > limit:
        yield Problem(f"expected at most {limit:,}, got {largest:,}", where)
    distinct = {(isinstance(value, bool), value) for value in dimension.choice or ()}  # 0 is 0.0
    if len(distinct) < len(dimension.choice or ()):
        yield Problem("expected each value once", f"{where}.choice")
    for other in dimension.when:
        if other not in RUN_KEYS:
            message = f"{other} is no configuration key of a training run"
            yield Problem(message, f"{where}.when", nearest=nearest(other, RUN_KEYS))
        elif other == key:
            yield Problem("a key cannot depend on itself", f"{where}.when")


@cache
def is_integer(key: str) -> bool:
    """Whether a key's values are whole numbers."""
    schema = TrainingRun.model_json_schema()
    return types(schema, field_at(schema, key.split("."))) <= {"integer", "null"}


class _Values:
    """Checks the values of a space's keys, each in some points that have it."""

    def __init__(self, space: Mapping[str, Dimension], base: TrainingRun, fit: FitConfig) -> None:
        self._dimensions, self._base = space, base
        search = SearchConfig.model_construct(space=dict(space))
        self._space = Space(SearchTask("", "", False, base, search, fit))
        self._conditions: dict[str, list[Problem]] = {}
        """What is wrong with a condition: keys share them."""

    def problems(self, key: str) -> Iterator[Problem]:
        """What is wrong with a key's conditions, or with the first value that no point can have."""
        dimension, where = self._dimensions[key], f"search.space.{key}"
        wrong = list(self._condition_problems(key, dimension))
        yield from (problem.at(f"{where}.when") for problem in wrong)
        given = {} if wrong else required(self._dimensions, key)
        for value in dimension.examples:
            problem = self.invalid({**given, key: value})
            if problem and (dimension.is_listed or self._is_limit(key, value)):
                yield problem.at(where)
                return

    def invalid(self, given: Mapping[str, Choice]) -> Problem | None:
        """What is wrong with some values; None if a point that has them is valid."""
        if self._space.is_valid(given):
            return None
        rng = Random(0)
        some = (self._space.draw(rng, given) for _ in range(MAX_TRIED))
        beside = islice(_beside(self._dimensions, given), MAX_TRIED)
        points = ({**point, **given} for points in (beside, some) for point in points)
        others = self._dimensions.keys() - given.keys()
        found = others and any(map(self._space.is_valid, points))
        return None if found else self._space.problem(given)

    def _is_limit(self, key: str, value: Choice) -> bool:
        """Whether a value is invalid by itself, as the end of a range may be."""
        try:
            TrainingRun().replace({key: value})
        except ConfigError as error:
            return any(problem.key == key for problem in error.problems)
        return False

    def _condition_problems(self, key: str, dimension: Dimension) -> Iterator[Problem]:
        try:
            given = required(self._dimensions, key)
        except FieldError as error:
            yield Problem(error.message)
            return
        for other, wanted in dimension.when.items():
            text = point_key({other: wanted})
            if text not in self._conditions:
                self._conditions[text] = list(self._never(other, wanted, given))
            yield from self._conditions[text]

    def _never(self, key: str, wanted: Choice, given: Mapping[str, Choice]) -> Iterator[Problem]:
        """Why a condition is never met; `given` are those that are needed with it."""
        dimension = self._dimensions.get(key)
        if problem := self.invalid(given):
            yield problem
        elif dimension is None and self._base.get(key) != wanted:
            is_now = quote_value(self._base.get(key))
            yield Problem(f"it can never apply: {key} is {is_now}, not {quote_value(wanted)}")
        elif dimension is not None and not dimension.contains(wanted):
            yield Problem(f"it can never apply: {key} is never {quote_value(wanted)}")

    def no_point(self) -> Iterator[Problem]:
        """The problem of a space without a valid point."""
        points = list(self._space.some_points(MAX_CHECKED_POINTS))
        if points and not any(map(self._space.is_valid, points)):
            shown = ", ".join(f"{key}={format_value(value)}" for key, value in points[0].items())
            reason = self._space.problem(points[0])
            message = f"no valid point among {len(points)}; of {shown}: {reason}"
            yield Problem(message, "search.space")


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


def first_point_problems(
    search: SearchConfig, base: TrainingRun, fit: FitConfig
) -> Iterator[Problem]:
    """What is wrong with the first of search.try_first that no valid point has."""
    checks = _Values(search.space, base, fit)
    for point in search.try_first:
        if problem := checks.invalid(point):
            found = problem.at("search.try_first")
            yield replace(found, message=f"invalid point of the search space: {found.message}")
            return
