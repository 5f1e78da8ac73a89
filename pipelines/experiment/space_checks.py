"""What is wrong with a search space; used by the check of an experiment, before anything starts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from graphlib import CycleError
from itertools import chain, islice

from dca.errors import FieldError
from pipelines.config.schema import field_at, types
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import counted, format_value, nearest, quote_value
from pipelines.search.config import Choice, Dimension, SearchConfig, SearchTask, condition_order
from pipelines.search.space import (
    FIXED,
    RUN_KEYS,
    Space,
    beside,
    point_key,
    required,
    with_required,
)
from pipelines.training.config import (
    SCHEDULE_OPTIONS,
    FitConfig,
    TrainingRun,
    without_options_of_others,
)

MAX_SIZES = {
    **{"model.dim": 1 << 20, "model.depth": 2000, "model.ff_mult": 1024},
    **{"train.tokens": 10**15, "fit.tokens": 10**15},
    **{"train.evals": 10_000, "fit.evals": 10_000},
}
"""Largest values of some keys. What a model takes is computed of one that is made, without weights;
each training has a list of its evaluations; and its schedule computes with real numbers."""
MAX_BESIDE = 200
"""Points that differ from the base in one other key, which are tried before."""
SIZES = [1 << exponent for exponent in range(40)]
"""Multiples and divisors of most sizes."""
OTHERS: list[dict[str, Choice]] = [
    {},
    {"train.seq_len": 1, "model.heads": 1},
    {"model.dim": 1 << 20, "model.heads": 1 << 10},
]
"""Values of other keys, of which a key's own are multiples or divisors, beside which its limits are
looked for: the defaults, and those that leave it most."""
MAX_COMPARED = 50
"""Invalid points whose problems are compared, which takes a millisecond each."""
MAX_TRIED_TOGETHER = 10_000
"""Points that are tried for all values together, after which the others are taken as valid."""


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
        near = "" if key in RUN_KEYS else nearest(key, RUN_KEYS)
        yield Problem("expected a key of model or train", where, nearest=near)
    elif key in FIXED:
        yield Problem("cannot be searched: trials would no longer be comparable", where)
    elif key not in RUN_KEYS:
        yield Problem("no such configuration key", where, nearest=nearest(key, RUN_KEYS))
    real = dimension.uniform or dimension.log_uniform
    if real and key in RUN_KEYS and is_integer(key):
        ends = f"[{math.ceil(real[0])}, {math.floor(real[1])}]"
        log = ", log: true" if dimension.log_uniform else ""
        yield Problem(f"expected integers, as in {{int: {ends}{log}}}, got real numbers", where)
    limit, numbers = MAX_SIZES.get(key), dimension.choice or dimension.int
    largest = max((one for one in numbers or () if type(one) is int), default=0)
    if limit and largest > limit:
        yield Problem(f"expected at most {limit:,}, got {largest:,}", where)
    if key == "train.precision" and "auto" in (dimension.choice or ()):
        message = "expected float32 or bfloat16: a command resolves auto once, for all trainings"
        yield Problem(message, f"{where}.choice")
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
        self._tried = 0

    def problems(self, key: str) -> Iterator[Problem]:
        """What is wrong with a key's conditions, or with the first value that no point can have."""
        dimension, where = self._dimensions[key], f"search.space.{key}"
        wrong = list(self._condition_problems(key, dimension))
        yield from (problem.at(f"{where}.when") for problem in wrong)
        given = {} if wrong else required(self._dimensions, key)
        if dimension.int is None:
            for value in dimension.examples:
                problem = self.invalid({**given, key: value})
                if problem and (dimension.is_listed or self._is_limit(key, value)):
                    yield problem.at(where)
                    return
        elif problem := self._integer_problem(key, dimension, given):
            yield problem.at(where)

    def _integer_problem(
        self, key: str, dimension: Dimension, given: Mapping[str, Choice]
    ) -> Problem | None:
        """What is wrong with an end of an integer range beyond a limit of its key, or with the
        first of a short range's values if all are invalid. An invalid one among valid ones, which
        the user has not listed, is left out where it is proposed, as any invalid point."""
        first, *others = dimension.examples
        last = others.pop()
        problems = {}
        for value in (first, last):
            problems[value] = self.invalid({**given, key: value})
            if problems[value] and self._is_limit(key, value):
                return problems[value]
        if not dimension.is_listed or None in problems.values():
            return None
        if all(self.invalid({**given, key: value}) for value in others):
            return problems[first]
        return None

    def invalid(self, given: Mapping[str, Choice]) -> Problem | None:
        """What is wrong with some values; None if a point that has them is valid."""
        if self._space.is_valid(given):
            return None
        if not self._dimensions.keys() - given.keys():
            return self._space.problem(given)
        near = islice(beside(self._dimensions, given), MAX_BESIDE)
        points = []
        for point in chain(near, self._space.some_points(given)):
            points.append({**point, **given})
            self._tried += 1
            if self._tried > MAX_TRIED_TOGETHER or self._space.is_valid(points[-1]):
                return None
        if not self._space.has_few(given) and not self._same_problem(points):
            return None
        problem, tried = self._space.problem(given), len(set(map(point_key, points)))
        assert problem is not None
        message = f"{problem.message}; none of {counted(tried, 'point')} with this value is valid"
        return replace(problem, message=message)

    def _same_problem(self, points: Sequence[Mapping[str, Choice]]) -> bool:
        """Whether the same is wrong with all of some points, whatever their other values are. Else
        a valid one may be among those that were not tried."""
        return len({str(self._space.problem(one)) for one in points[-MAX_COMPARED:]}) == 1

    def _is_limit(self, key: str, value: Choice) -> bool:
        """Whether the end of a range is beyond a limit of its key: it is invalid by itself, and so
        is what lies further outside. Else it may be between two valid multiples."""
        integers = self._dimensions[key].integers
        outside = [size for size in SIZES if size not in integers] if integers else []
        is_low = integers is not None and value == integers[0]
        further = [size for size in outside if type(value) is int and (size < value) == is_low]
        return all(_is_wrong(key, one) for one in [value, *further])

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
        points = []
        for point in self._space.some_points({}):
            points.append(point)
            if self._space.is_valid(point):
                return
        if points:
            shown = ", ".join(f"{key}={format_value(value)}" for key, value in points[0].items())
            reason = self._space.problem(points[0])
            message = f"no valid point among {len(points):,}; of {shown}: {reason}"
            yield Problem(message, "search.space")


def unused_options(space: Mapping[str, Dimension], base: TrainingRun) -> Iterator[Problem]:
    """Options that are given, or searched, although no trial has a schedule that reads them, and
    searched ones of residual kinds that no trial trains."""
    for key in space:
        kinds = _possible("model.residual", space, base, key)
        if not any(without_options_of_others([(key, None)], kinds)):
            message = f"nothing reads it with residual = {', '.join(kinds)}"
            yield Problem(message, f"search.space.{key}")
    for key, readers in SCHEDULE_OPTIONS.items():
        given = [(key, "")] if base.get(key) is not None else []
        given += [(f"search.space.{key}", key)] if key in space else []
        for name, searched in given:
            schedules = _possible("train.schedule", space, base, searched)
            if readers.isdisjoint(schedules):
                yield Problem(f"expected null with schedule = {', '.join(schedules)}", name)


def _possible(
    key: str, space: Mapping[str, Dimension], base: TrainingRun, searched: str
) -> list[str]:
    """The values that a key may have in trials; in those with another key `searched`, if named."""
    needed = required(space, searched) if searched else {}
    choice = space[key].choice if key in space else [base.get(key)]
    return sorted(map(str, [needed[key]] if key in needed else choice or []))


def first_point_problems(
    search: SearchConfig, base: TrainingRun, fit: FitConfig
) -> Iterator[Problem]:
    """What is wrong with the first of search.try_first that no valid point has."""
    checks = _Values(search.space, base, fit)
    for index, point in enumerate(search.try_first):
        try:
            whole = with_required(search.space, point)
        except FieldError as error:
            yield Problem(error.message, f"search.try_first.{index}.{error.field}")
            return
        if problem := checks.invalid(whole):
            found = problem.at("search.try_first")
            yield replace(found, message=f"invalid point of the search space: {found.message}")
            return


def _is_wrong(key: str, value: Choice) -> bool:
    """Whether a value is invalid whatever the sizes of the rest are, and it is that key's."""
    for others in OTHERS:
        try:
            TrainingRun().replace({**others, key: value})
        except ConfigError as error:
            if any(problem.key == key for problem in error.problems):
                continue
        return False
    return True
