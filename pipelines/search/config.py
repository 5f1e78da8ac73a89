"""The sections `search` and `fit`: which keys, how many trials, who samples, who stops, and the
final training of the winner."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import product
from typing import Annotated, Literal, cast

from pydantic import Field, model_validator

from dca.errors import FieldError
from pipelines.config.section import Positive, Section
from pipelines.training.config import Resources, TrainingRun

RealRange = tuple[int | float, int | float]

IntRange = tuple[int, int]

Choice = bool | int | float | str | None

DEFAULT_TRIALS = 8

MOST_EXAMPLES = 100
"""Width up to which every integer of a range is tried, and not only its ends."""


class Dimension(Section):
    """One searched key: exactly one kind of range, and when it applies."""

    log_uniform: RealRange | None = None
    """Low and high of a real number, uniform in its logarithm."""
    uniform: RealRange | None = None
    """Low and high of a real number."""
    int: IntRange | None = None
    """Low and high of an integer, both included."""
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

    @property
    def examples(self) -> list[Choice]:
        """Values that between them show whether the key can take this range."""
        if self.int is not None and self.int[1] - self.int[0] < MOST_EXAMPLES:
            return list(range(self.int[0], self.int[1] + 1))
        return list(self.choice or self.log_uniform or self.uniform or self.int or ())

    @property
    def grid(self) -> list[Choice] | None:
        """Every value of a choice or an integer range; None for real numbers."""
        if self.int is not None:
            return list(range(self.int[0], self.int[1] + 1))
        return self.choice

    def contains(self, value: Choice) -> bool:
        """Whether the range has this value."""
        if self.choice is not None:
            return any(type(value) is type(one) and value == one for one in self.choice)
        low, high = self.int or self.log_uniform or self.uniform or (0, 0)
        kinds = (int,) if self.int else (int, float)
        return type(value) in kinds and low <= cast(float, value) <= high


class SamplerConfig(Section):
    """Who proposes the next trial."""

    name: Literal["tpe", "gp", "cmaes", "qmc", "random", "grid"] = "tpe"
    """Optuna's tree-structured Parzen estimator, Gaussian process, CMA-ES (numbers only) or Sobol
    sequence; uniform sampling; or every point of `choice` and `int` ranges. Conditions (`when`)
    need tpe or random."""
    startup_trials: Positive = 4
    """Random trials before tpe, gp or cmaes model anything."""


class SchedulerConfig(Section):
    """Who stops a trial early."""

    name: Literal["asha", "median", "none"] = "asha"
    """Asynchronous successive halving (arXiv 1810.05934); median stopping, at whatever is worse
    than half of the completed trials (four at least) were there; or every trial to its end."""
    grace_evals: Positive = 2
    """Evaluations before a trial may be stopped."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """asha: of this many trials at a rung, one goes on."""


class SearchConfig(Section):
    """The search: which keys, how many trials, who samples, who stops."""

    space: dict[str, Dimension] = {}
    """Dotted configuration keys and their ranges."""
    sampler: SamplerConfig = SamplerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    trials: Positive | None = None
    """Trials of the whole search, resumed or not; null: every point of a grid, else 8."""
    second_objective: Literal["parameters", "bytes_per_second"] | None = None
    """What to weigh against train.best_metric: fewer `parameters`, or more `bytes_per_second` of
    training. The front is reported, its best in bits per byte wins. Needs scheduler none."""
    try_first: list[dict[str, Choice]] = []
    """Points of the space to begin with; keys that a point leaves out are sampled."""
    warm_start: list[str] = []
    """Experiments whose finished searches, of the same space, corpus and training, the sampler
    learns from before it proposes anything."""
    max_tokens: Positive | None = None
    """Training bytes of all trials together after which no further trial starts."""
    max_seconds: Positive | None = None
    """Wall-clock time of the search, resumed or not, after which no further trial starts."""

    @property
    def trial_count(self) -> int:
        """`trials`, or what null stands for."""
        points = self.grid_size if self.sampler.name == "grid" else DEFAULT_TRIALS
        return self.trials or points

    @property
    def grid_points(self) -> Iterator[dict[str, Choice]]:
        """The points of a grid, the last key changing fastest."""
        ranges = [dimension.grid or [] for dimension in self.space.values()]
        return (dict(zip(self.space, values, strict=True)) for values in product(*ranges))

    @property
    def grid_size(self) -> int:
        """Points of the grid that the space spans; real numbers count once."""
        return math.prod(len(dimension.grid or [None]) for dimension in self.space.values())


class FitConfig(Section):
    """The final training of the search's winner."""

    tokens: Positive | None = None
    """Training budget in bytes; null: train.tokens."""
    resources: Resources = Resources()


@dataclass(frozen=True)
class SearchTask:
    """A search as its parts read it: what is trained, what is searched, under which name."""

    experiment: str
    storage: str
    tensorboard: bool
    base: TrainingRun
    """One trial, with each searched key at the experiment's own value."""
    search: SearchConfig


def condition_order(space: Mapping[str, Dimension]) -> list[str]:
    """The searched keys, each after those its conditions name. Raises CycleError."""
    graph = {key: [other for other in space[key].when if other in space] for key in space}
    return list(TopologicalSorter(graph).static_order())
