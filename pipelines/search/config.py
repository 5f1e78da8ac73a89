"""The section `search`: the searched keys, the number of trials, the sampler and the scheduler."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from random import Random
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, model_validator

from dca import registry
from dca.errors import FieldError
from pipelines.config.left_out import without_keys
from pipelines.config.section import Positive, Section
from pipelines.console.errors import Problem
from pipelines.console.text import counted, nearest, quote_value
from pipelines.training.config import FitConfig, TrainingRun


def _plain(value: Any) -> Any:
    """One error for another value, instead of one for each type that it is not."""
    if isinstance(value, bool | int | str | None) or _is_number(value):
        return value
    raise ValueError(f"expected true, false, null, a number or a text, got {quote_value(value)}")


def _number(value: Any) -> Any:
    if _is_number(value):
        return value
    raise ValueError(f"expected a number, got {quote_value(value)}")


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and -sys.float_info.max <= value <= sys.float_info.max


Number = Annotated[int | float, BeforeValidator(_number)]
RealRange = tuple[Number, Number]
MAX_INTEGER = 2**53
"""Up to which the samplers, which compute with real numbers, keep integers apart."""
Integer = Annotated[int, Field(ge=-MAX_INTEGER, le=MAX_INTEGER)]
IntRange = tuple[Integer, Integer]
Choice = Annotated[bool | int | float | str | None, BeforeValidator(_plain)]
Count = int
"""In Dimension, where `int` is a field."""

DEFAULT_TRIALS = 8
MAX_TRIALS = 10_000
"""Of a search: each has a run in the tracking store, and is read when the search goes on."""
LEARNING_SAMPLERS = ("tpe", "gp", "cmaes")
"""Samplers whose proposals depend on the trials before."""
MAX_EXAMPLES = 100
"""Width up to which a check tries every integer of a range; of a wider one it tries the ends."""


class Dimension(Section):
    """One searched key: exactly one kind of range, and when it applies."""

    log_uniform: RealRange | None = None
    """Low and high of a real number, uniform in its logarithm."""
    uniform: RealRange | None = None
    """Low and high of a real number."""
    int: IntRange | None = None
    """Low and high of an integer, both included."""
    step: Annotated[Positive, Field(exclude_if=lambda step: step == 1)] = 1
    """int: the difference between two values, beginning at low."""
    log: Annotated[bool, Field(exclude_if=lambda log: not log)] = False
    """int: whether it is uniform in its logarithm."""
    choice: list[Choice] | None = None
    """The values themselves."""
    when: dict[str, Choice] = {}
    """Keys and the value each must have for this one to be searched."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Dimension":
        kinds = [self.log_uniform, self.uniform, self.int, self.choice]
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError("expected exactly one of log_uniform, uniform, int, choice")
        for bounds in (self.log_uniform, self.uniform, self.int):
            if bounds is not None and not bounds[0] < bounds[1]:
                raise ValueError(f"expected low < high, got {list(bounds)}")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise FieldError("log_uniform", f"expected low > 0, got {self.log_uniform[0]}")
        if self.choice is not None and not self.choice:
            raise FieldError("choice", "expected at least one value")
        return self

    @model_validator(mode="after")
    def _steps_fit(self) -> "Dimension":
        if self.int is None:
            for name in ("step", "log"):
                if name in self.model_fields_set and getattr(self, name) not in (1, False):
                    raise FieldError(name, "expected with int only")
            return self
        low, high = self.int
        if self.log and self.step > 1:
            raise FieldError("step", f"expected 1 with log: true, got {self.step}")
        if self.log and low < 1:
            raise FieldError("int", f"expected low > 0 with log: true, got {low}")
        if (high - low) % self.step:
            nearest = max(high - (high - low) % self.step, low + self.step)
            message = f"expected high - low to be a multiple of step = {self.step}"
            raise FieldError("int", f"{message}, as in [{low}, {nearest}], got {[low, high]}")
        return self

    @property
    def integers(self) -> range | None:
        """The values of an integer range; None for another."""
        return None if self.int is None else range(self.int[0], self.int[1] + 1, self.step)

    @property
    def examples(self) -> list[Choice]:
        """Values on which the check of a range tries its key."""
        if self.is_listed:
            return list(self.grid or ())
        return list(self.choice or self.log_uniform or self.uniform or self.int or ())

    @property
    def is_listed(self) -> bool:
        """Whether a check tries every value: of a choice or a short integer range."""
        return self.choice is not None or (self.size is not None and self.size <= MAX_EXAMPLES)

    @property
    def grid(self) -> Sequence[Choice] | None:
        """Every value of a choice or an integer range; None for real numbers."""
        return self.choice if self.integers is None else self.integers

    @property
    def size(self) -> "Count | None":
        """How many values a choice or an integer range has; None for real numbers."""
        if self.int is not None:
            return (self.int[1] - self.int[0]) // self.step + 1
        return None if self.choice is None else len(self.choice)

    def draw(self, rng: Random) -> Choice:
        """A random value of the range."""
        if self.choice is not None:
            return rng.choice(self.choice)
        low, high = self.log_uniform or self.uniform or self.int or (0, 0)
        if self.log or self.log_uniform:
            drawn = math.exp(rng.uniform(math.log(low), math.log(high)))
            return min(max(round(drawn), low), high) if self.log else drawn
        if self.size is not None:
            return low + self.step * rng.randrange(self.size)
        return rng.uniform(low, high)

    def contains(self, value: Choice) -> bool:
        """Whether the range has this value."""
        if self.choice is not None:
            return any(type(value) is type(one) and value == one for one in self.choice)
        if self.integers is not None:
            return type(value) is int and value in self.integers
        low, high = self.log_uniform or self.uniform or (0, 0)
        return type(value) in (int, float) and low <= cast(float, value) <= high


class SamplerConfig(Section):
    """How the next trial's values are chosen."""

    name: Literal["tpe", "gp", "cmaes", "qmc", "random", "grid"] = "tpe"
    """Optuna's tree-structured Parzen estimator, Gaussian process, CMA-ES (numbers only) or Sobol
    sequence; uniform sampling; or every point of `choice` and `int` ranges. Conditions (`when`)
    need tpe or random."""
    startup_trials: Positive = 4
    """Random trials before tpe, gp or cmaes use a model of the results."""


class SchedulerConfig(Section):
    """How trials are stopped early."""

    name: Literal["asha", "median", "none"] = "asha"
    """Asynchronous successive halving (arXiv 1810.05934); median stopping, of a trial that is worse
    than half of the completed trials (at least four) were at the same tokens; or none."""
    grace_evals: Positive = 2
    """Evaluations before a trial may be stopped."""
    reduction_factor: Annotated[int, Field(ge=2, le=1_000_000)] = 3
    """asha: of the trials at a rung (a number of training tokens) the best 1/reduction_factor
    continue."""


class SearchConfig(Section):
    """The search: its space, number of trials, sampler, scheduler and budgets."""

    space: dict[str, Dimension] = {}
    """Dotted configuration keys and their ranges."""
    sampler: SamplerConfig = SamplerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    trials: Positive | None = None
    """Trials of the whole search, over all its sessions, at most 10,000; null: every point of a
    grid, else 8. More of them, or another space, go on with the trials that lie in the space."""
    second_objective: Literal["parameters", "bytes_per_second"] | None = None
    """A second objective beside train.best_metric: fewer `parameters`, or more `bytes_per_second`
    of training. The Pareto front is reported; its best in bits per byte is the winner. Needs
    scheduler none."""
    try_first: list[dict[str, Choice]] = []
    """Points of the space that are tried first; keys that a point leaves out are sampled."""
    warm_start: list[str] = []
    """Experiments from whose complete and pruned trials, of the same corpus and in this space, the
    sampler learns before its first proposal."""
    max_tokens: Positive | None = None
    """Training bytes of all trials together after which no further trial starts; in a study of the
    trials of each arm."""
    max_seconds: Positive | None = None
    """Wall-clock time of the search, over all its sessions, after which no further trial starts; in
    a study of all arms' searches, which run at the same time."""

    @property
    def trial_count(self) -> int:
        """`trials`, or its default."""
        points = self.grid_size if self.sampler.name == "grid" else DEFAULT_TRIALS
        return self.trials or points

    @property
    def grid_points(self) -> Iterator[dict[str, Choice]]:
        """The points of a grid, the last key changing fastest."""
        return _product(list(self.space.items()), {})

    @property
    def grid_size(self) -> int:
        """Points of the grid that the space spans; real numbers count once."""
        return math.prod(dimension.size or 1 for dimension in self.space.values())

    def applicable(self, values: Mapping[str, Any]) -> "SearchConfig":
        """The search of a base with these values of all keys, which conditions need not name then.

        Keys whose conditions never hold drop out, also of the points to try first; a condition that
        always holds is none.
        """
        space: dict[str, Dimension] = {}
        left = self.space
        while len(space) != len(left):
            space = left
            left = {
                key: dimension
                for key, dimension in space.items()
                if all(k in space or values.get(k, v) == v for k, v in dimension.when.items())
            }
        for key, dimension in space.items():
            when = {k: v for k, v in dimension.when.items() if k in space or k not in values}
            space = {**space, key: dimension.model_copy(update={"when": when})}
        points = without_keys(self.try_first, set().union(*self.try_first) - space.keys())
        return self.model_copy(update={"space": space, "try_first": points})

    def within_budget(self, tokens: int, seconds: float) -> bool:
        """Whether another trial may start after so many tokens of training and so much time."""
        return tokens < (self.max_tokens or math.inf) and seconds < (self.max_seconds or math.inf)


def _product(
    left: Sequence[tuple[str, Dimension]], values: dict[str, Choice]
) -> Iterator[dict[str, Choice]]:
    """Every point of the ranges that are left, one at a time: a range may have 10^9 values."""
    if not left:
        yield values
        return
    (key, dimension), *others = left
    for value in dimension.grid or ():
        yield from _product(others, {**values, key: value})


@dataclass(frozen=True)
class SearchTask:
    """What a search reads of an experiment: its name and storage, one training run, the search.

    Made by `Experiment.search_task`; so that this package need not import the experiment.
    """

    experiment: str
    storage: str
    tensorboard: bool
    base: TrainingRun
    """One trial, with each searched key at the experiment's own value."""
    search: SearchConfig
    fit: FitConfig = field(default_factory=FitConfig)
    """What the winner's final training changes: a point must be valid as a fit, too."""

    def modules(self, values: Mapping[str, Any]) -> tuple[str, str, str]:
        """The modules whose code, with all that they import, trains a trial of these values."""
        model, kinds = self.base.model, (registry.architecture, registry.residual)
        chosen = [values.get(f"model.{k.field}", getattr(model, k.field)) for k in kinds]
        architecture, residual = (
            kind.module(str(name)) for kind, name in zip(kinds, chosen, strict=True)
        )
        return "pipelines.cluster.trial", architecture, residual

    @property
    def grace_tokens(self) -> int:
        """Bytes that a trial trains on before it may be stopped."""
        train = self.base.train
        evaluations = min(self.search.scheduler.grace_evals, len(train.eval_steps))
        return train.eval_steps[evaluations - 1] * train.batch_tokens


def condition_order(space: Mapping[str, Dimension]) -> list[str]:
    """The searched keys, each after those its conditions name. Raises CycleError."""
    graph = {key: [other for other in space[key].when if other in space] for key in space}
    return list(TopologicalSorter(graph).static_order())


def search_problems(search: SearchConfig) -> Iterator[Problem]:
    """Combinations of the space, sampler, scheduler and points to try first that cannot work."""
    yield from _sampler_problems(search)
    yield from _scheduler_problems(search)
    if search.trial_count > MAX_TRIALS:
        points = "" if search.trials else ", the points of the grid"
        message = f"expected at most {MAX_TRIALS:,}, got {search.trial_count:,}{points}"
        yield Problem(message, "search.trials")
    if search.warm_start and search.sampler.name not in LEARNING_SAMPLERS:
        message = f"{search.sampler.name} does not learn: expected tpe, gp or cmaes"
        yield Problem(message, "search.warm_start")
    if search.try_first and search.sampler.name == "grid":
        yield Problem("expected none with a grid, which has its own order", "search.try_first")
    if len(search.try_first) > search.trial_count:
        message = f"expected at most search.trials = {counted(search.trial_count, 'point')}"
        yield Problem(message, "search.try_first")
    for index, point in enumerate(search.try_first):
        yield from _point_problems(search.space, point, f"search.try_first.{index}")


def _sampler_problems(search: SearchConfig) -> Iterator[Problem]:
    sampler, where = search.sampler.name, "search.sampler.name"
    for key, dimension in search.space.items():
        if dimension.when and sampler not in ("tpe", "random"):
            message = f"{sampler} does not support conditional keys, but {key} has a `when`"
            yield Problem(f"{message}; expected tpe, random", where)
        if sampler == "grid" and dimension.grid is None:
            message = "expected choice or int: a grid has no real numbers"
            yield Problem(message, f"search.space.{key}")
        if sampler == "cmaes" and dimension.choice is not None:
            message = "expected numbers: cmaes does not support choice"
            yield Problem(message, f"search.space.{key}")
    if sampler == "cmaes" and len(search.space) < 2:
        yield Problem(f"cmaes needs two searched keys or more, got {len(search.space)}", where)
    finite = all(dimension.grid is not None for dimension in search.space.values())
    if sampler == "grid" and finite and search.trial_count > search.grid_size:
        message = f"expected null or at most {search.grid_size}, the points of the grid"
        yield Problem(message, "search.trials")
    if search.second_objective and sampler == "cmaes":
        message = "cmaes supports one objective: expected tpe, gp, qmc, random or grid"
        yield Problem(message, where)


def _scheduler_problems(search: SearchConfig) -> Iterator[Problem]:
    name, where = search.scheduler.name, "search.scheduler.name"
    if name == "median" and "train.batch_tokens" in search.space:
        message = (
            "median compares trials at equal tokens: expected asha or none where "
            "train.batch_tokens is searched"
        )
        yield Problem(message, where)
    if search.second_objective and name != "none":
        message = f"expected none with search.second_objective, got {name}, which compares by one"
        yield Problem(message, where)


def _point_problems(
    space: Mapping[str, Dimension], point: Mapping[str, Choice], where: str
) -> Iterator[Problem]:
    for key, value in point.items():
        if key not in space:
            yield Problem(f"{key} is not searched", where, nearest=nearest(key, space))
            continue
        if not space[key].contains(value):
            message = f"expected a value of its range, got {quote_value(value)}"
            yield Problem(message, f"{where}.{key}")
        for other, wanted in space[key].when.items():
            if point.get(other, wanted) != wanted:
                message = f"not searched with {other} = {quote_value(point[other])}"
                yield Problem(message, f"{where}.{key}")
