"""A searched key as Optuna knows it: for who proposes its values, and for who explains them."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from pipelines.console.errors import ConfigError
from pipelines.search.config import Dimension, SearchTask, condition_order
from pipelines.training.config import TrainingRun
from pipelines.training.memory import peak_bytes


def distribution(dimension: Dimension) -> BaseDistribution:
    """The range of a dimension; its conditions are not part of it."""
    if dimension.choice is not None:
        return CategoricalDistribution(dimension.choice)
    if dimension.int is not None:
        return IntDistribution(*dimension.int)
    if dimension.log_uniform is not None:
        return FloatDistribution(*dimension.log_uniform, log=True)
    assert dimension.uniform is not None
    return FloatDistribution(*dimension.uniform)


def largest_trial(task: SearchTask) -> TrainingRun:
    """The configuration of the search space that needs most, each key at its worst in turn."""
    worst = task.base
    for key in condition_order(task.search.space):
        dimension = task.search.space[key]
        ends = dimension.choice or dimension.int or ()
        reachable = all(
            k in task.search.space or worst.get(k) == v for k, v in dimension.when.items()
        )
        points = [{**dimension.when, key: end} for end in ends] if reachable else []
        sizes = [*([worst] if dimension.when else []), *_replaced(worst, points)]
        worst = max(sizes, key=lambda one: peak_bytes(one, on_gpu=False), default=worst)
    return worst


def _replaced(run: TrainingRun, points: Iterable[Mapping[str, Any]]) -> Iterator[TrainingRun]:
    """What points of the space make; those that do not go with the other keys are left out."""
    for values in points:
        with suppress(ConfigError):
            yield run.replace(values)


class Space:
    """A search space with conditions, in an order that knows a key before what depends on it."""

    def __init__(self, task: SearchTask) -> None:
        space = task.search.space
        self._base = task.base
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
        return self._base.get(key)

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
