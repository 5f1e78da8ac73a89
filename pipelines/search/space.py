"""The search space: which keys can be searched, and its points.

Used by the experiment, which refuses a space with a value that no point of it can have, or without
a valid point. Also by the search, which draws points and leaves out invalid ones.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import chain, count, islice
from random import Random
from typing import TYPE_CHECKING, Any

from dca import registry
from dca.errors import FieldError
from pipelines.config.section import set_key
from pipelines.config.validation import validate
from pipelines.config.yaml_text import flatten
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import quote_value
from pipelines.search.config import (
    Choice,
    Dimension,
    SearchTask,
    condition_order,
)
from pipelines.training.config import (
    SCHEDULE_OPTIONS,
    TrainingRun,
    without_options_of_others,
)
from pipelines.training.memory import micro_tokens

if TYPE_CHECKING:  # MLflow and Optuna, which take seconds to import
    import optuna

    from pipelines.tracking.trials import StoredTrial

RUN_KEYS = list(dict(flatten(TrainingRun().model_dump(mode="json"))))
"""Keys that one training run reads."""
TRAINING_KEYS = [key for key in RUN_KEYS if key.startswith(("model.", "train."))]
"""Keys of the model and its training: all but the fixed ones can be searched."""
FIXED = {
    *("train.start_from", "train.tokens", "train.seq_len", "train.evals", "train.eval_tokens"),
    *("train.best_metric", "train.patience", "train.log_every_steps"),
}
"""Keys in which trials must agree to be comparable: they cannot be searched."""
MAX_TRIED = 2000
"""Points among which a space, and a value that is invalid on the base, must have a valid one: all
of a small space, random ones of another. A tenth of a second's work."""
MAX_LOOKED_AT = 5000
"""Points of a finite space, in its order, among which new ones are looked for."""
MAX_FACTOR = 1000
"""Of two factors of a number, that to which the smaller one is looked for."""
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
        self._last: tuple[str, TrainingRun | None] | None = None

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

    def draw_related(
        self, rng: Random, given: Mapping[str, Choice] | None = None
    ) -> dict[str, Any]:
        """The same, where a number is often an end of its range, or a multiple or a divisor of one
        of the others: some of these points are valid where random ones hardly ever are."""
        fixed = given or {}
        chosen = list(filter(_is_size, fixed.values()))

        def value_of(key: str, dimension: Dimension) -> Any:
            numbers = rng.choice([self._sizes, chosen])
            value = fixed[key] if key in fixed else _related(dimension, rng, numbers)
            chosen.extend(filter(_is_size, [value]))
            return value

        return self.point(value_of)

    def redraw(self, rng: Random, point: Mapping[str, Choice]) -> dict[str, Any]:
        """A point with another value of one of its keys, and what then applies beside it."""
        changed = rng.choice(list(point))

        def value_of(key: str, dimension: Dimension) -> Any:
            return point[key] if key in point and key != changed else dimension.draw(rng)

        return self.point(value_of)

    def point(self, value_of: Callable[[str, Dimension], Any]) -> dict[str, Any]:
        """Values of the keys whose conditions are met, each from a function of key and range."""
        values: dict[str, Any] = {}
        for key, dimension in self._dimensions.items():
            if self._is_active(dimension, values):
                values[key] = value_of(key, dimension)
        return values

    def points(self, given: Mapping[str, Choice] | None = None) -> Iterator[dict[str, Any]]:
        """Every point of a finite space, the last key changing fastest, with the `given` values."""
        return self._points(given or {}, None)

    def _points(self, given: Mapping[str, Choice], rng: Random | None) -> Iterator[dict[str, Any]]:
        """Every point; with a generator each real number is any, or an end of its range."""

        def below(
            left: Sequence[tuple[str, Dimension]], values: dict[str, Any]
        ) -> Iterator[dict[str, Any]]:
            if not left:
                yield values
                return
            (key, dimension), *others = left
            if not self._is_active(dimension, values):
                yield from below(others, values)
                return
            every = dimension.grid
            if key in given:
                every = [given[key]]
            elif every is None:
                every = [_related(dimension, rng, ())] if rng else []
            for value in every:
                yield from below(others, {**values, key: value})

        return below(list(self._dimensions.items()), {})

    def has_few(self, given: Mapping[str, Choice]) -> bool:
        """Whether `some_points` are all with the `given` values, but for real numbers."""
        sizes = [one.size or 1 for key, one in self._dimensions.items() if key not in given]
        return math.prod(sizes) <= MAX_TRIED

    def some_points(self, given: Mapping[str, Choice]) -> Iterator[dict[str, Any]]:
        """Points with the `given` values: all of a small finite space, else MAX_TRIED of them.

        Of a space that is small but for real numbers all with some of these, as often as there is
        room; of another random ones and, after each, one of `draw_related`.
        """
        left = [one for key, one in self._dimensions.items() if key not in given]
        if self.has_few(given) and all(one.size for one in left):
            yield from self.points(given)
            return
        rng = Random(0)
        if self.has_few(given):
            rounds = (self._points(given, rng) for _ in count())
            yield from islice(chain.from_iterable(rounds), MAX_TRIED)
            return
        for _ in range(MAX_TRIED // 2):
            yield self.draw(rng, given)
            yield self.draw_related(rng, given)

    def training_key(self, values: Mapping[str, Any]) -> str:
        """A text that is the same for points of the same training: without the options that its
        residual kind or its schedule does not read, and with the values that it computes with."""
        run = self._run(values)
        if run is None:  # it trains nothing
            return point_key(values)
        used = resolved_values(run)
        keys = read_keys(self._dimensions, run.model.residual, run.train.schedule)
        return point_key({key: used.get(key, run.get(key)) for key in keys})

    def is_valid(self, values: Mapping[str, Any]) -> bool:
        """Whether a point is a trial that the fit can train too, in a tenth of `problem`'s time."""
        run = self._run(values)
        if run is None:
            return False
        try:
            self._fit.check(run.train)
        except FieldError:
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

    def _run(self, values: Mapping[str, Any]) -> TrainingRun | None:
        """A point as a trial; None if it is invalid. The last one is kept: a valid point's key is
        wanted next."""
        key = point_key(values)
        if self._last is None or self._last[0] != key:
            data = _copied(self._data)
            for name, value in values.items():
                set_key(data, name, value)
            try:
                run: TrainingRun | None = validate(TrainingRun, data, explain=False)
            except ConfigError:
                run = None
            self._last = key, run
        return self._last[1]

    @cached_property
    def _data(self) -> dict[str, Any]:
        """The base as plain data."""
        return self._bare.model_dump(mode="json")

    @cached_property
    def _sizes(self) -> list[Any]:
        """The sizes of the base: whole numbers of its model and training."""
        return [one for _, one in flatten(self._data) if _is_size(one)]

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


def bounded(task: SearchTask, stored: "Sequence[StoredTrial]") -> SearchTask:
    """The same search with no more trials than a small finite space has new valid points."""
    space, wanted = Space(task), task.search.trial_count
    if not space.is_finite or wanted <= len(stored):
        return task
    known, new = {space.training_key(trial.values) for trial in stored}, 0
    for looked_at, point in enumerate(space.points(), 1):
        if space.is_valid(point) and (key := space.training_key(point)) not in known:
            known.add(key)
            new += 1
        if new >= wanted - len(stored) or looked_at == MAX_LOOKED_AT:
            return task
    return replace(task, search=task.search.model_copy(update={"trials": len(stored) + new}))


def read_keys(keys: Iterable[str], kind: str, schedule: str) -> list[str]:
    """Those of the keys that a training of a residual kind and a schedule reads."""
    return [
        key
        for key, _ in without_options_of_others(((key, None) for key in keys), {kind})
        if schedule in SCHEDULE_OPTIONS.get(key, {schedule})
    ]


def resolved_values(run: TrainingRun) -> dict[str, Any]:
    """The values that a training computes with, of keys where others mean exactly the same, such as
    null and the default that it stands for."""
    model, train = run.model, run.train
    found = {
        "model.kv_heads": model.groups,
        "train.final_learning_rate_fraction": train.final_share,
        "train.decay_fraction": train.decay_share,
    }
    if not run.resources.gpus_per_worker:  # on a GPU null is what fits its memory
        found["train.micro_batch_tokens"] = micro_tokens(run)
    if resolve := getattr(model.options, "resolved", None):
        section = registry.residual.section(model.residual)
        found |= {f"model.{section}.{name}": value for name, value in resolve(model).items()}
    return found


def _copied(data: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data whose sections can be changed."""
    return {key: _copied(one) if isinstance(one, dict) else one for key, one in data.items()}


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _related(dimension: Dimension, rng: Random, numbers: Sequence[int]) -> Choice:
    """A random value of a range: any, an end of it, or a multiple or divisor of a number."""
    drawn, kind = dimension.draw(rng), rng.randrange(4)
    if dimension.choice is not None and kind and numbers:
        sizes = [one for one in dimension.choice if type(one) is int and one > 0]
        number = rng.choice(numbers)
        near = [one for one in sizes if one % number == 0 or number % one == 0]
        return rng.choice(near or [drawn])
    bounds = dimension.int or dimension.uniform or dimension.log_uniform
    if bounds is None or kind == 0:
        return drawn
    if kind == 1 or dimension.int is None or not numbers:
        return rng.choice(bounds)
    (low, high), number = dimension.int, rng.choice(numbers)
    if kind == 2:
        value = number * rng.randint(min(-(-low // number), high // number), high // number)
    else:
        value = rng.choice(_divisors(number))
    return value if dimension.contains(value) else drawn


@lru_cache
def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, min(math.isqrt(number), MAX_FACTOR) + 1) if number % n == 0]
    return [*small, *(number // n for n in small)]


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


def beside(
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


def with_required(space: Mapping[str, Dimension], point: Mapping[str, Choice]) -> dict[str, Choice]:
    """A point with the searched keys that the conditions of its own need, and theirs in turn.

    Raises FieldError, of the key, if conditions contradict one another or the point.
    """
    found = dict(point)
    for key in point:
        for other, wanted in required(space, key).items():
            if found.setdefault(other, wanted) != wanted:
                message = f"not searched with {other} = {quote_value(found[other])}"
                raise FieldError(key, message)
    return {key: value for key, value in found.items() if key in space}
