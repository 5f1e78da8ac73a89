"""A study of arms and seeds whose stages compute nothing, run in a real store."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pipelines.console.progress import Progress
from pipelines.console.updates import OutputMode
from pipelines.engine import dag
from pipelines.engine.instances import FanOut
from pipelines.engine.results import StageResults
from pipelines.engine.stage import Context, Ended, Growth, Instance, Invocation, Stage
from pipelines.experiment import Experiment
from pipelines.storage import location
from pipelines.tracking.descriptions import describe_pipeline
from pipelines.tracking.store import Store


@dataclass(frozen=True)
class Chosen:
    rate: float


@dataclass(frozen=True)
class Trained:
    run: str
    rate: float
    seed: int


@dataclass(frozen=True)
class Lost:
    reason: str


@dataclass(frozen=True)
class Compared:
    rates: dict[str, float]


@dataclass(frozen=True)
class Shown:
    text: str


class Study:
    """select[arm] -> fit[arm, seed] -> mean[arm] -> compare, and what ran of it."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.arms = {"slow": 0.1, "fast": 0.5}
        self.seeds = [0, 1]
        self.ran: list[str] = []
        self.growth: Growth[Experiment] | None = None
        self.errors: dict[tuple[float, int], BaseException] = {}
        self.lost: set[tuple[float, int]] = set()
        """Fits whose result is of another type."""
        self.partial = False
        """Whether `compare` runs with the fits that there are."""
        self.fit_together: Callable[..., None] | None = None
        self.calls: list[list[str]] = []
        """The instances in each call of `together`."""

    @property
    def fan_out(self) -> FanOut[Experiment]:
        return FanOut({"arm": list(self.arms), "seed": self.seeds}, self._configure)

    def _configure(self, values: Mapping[str, Any]) -> Experiment:
        rate = {"train.learning_rate": self.arms[values["arm"]]}
        seed = {"seed": values["seed"]} if "seed" in values else {}
        return self.experiment.replace(rate | seed)

    def stages(self) -> list[Stage[Experiment, Any]]:
        arm, rate = ("arm",), ("train.learning_rate",)
        kind, together = Trained | Lost, self.fit_together
        fit = Stage("fit", kind, self._fit, ("select",), ("seed",), over=("arm", "seed"))
        return [
            Stage("show", Shown, self._show, ("compare",), cached=False),
            Stage("compare", Compared, self._compare, ("fit",), partial=self.partial),
            Stage("mean", Compared, self._mean, ("fit",), over=arm),
            replace(fit, run_together=together),
            Stage("select", Chosen, self._select, (), rate, over=arm, growth=self.growth),
        ]

    def _select(self, context: Context[Experiment], needs: StageResults) -> Chosen:
        self.ran.append(f"select {context.config.train.learning_rate}")
        return Chosen(context.config.train.learning_rate)

    def _fit(self, context: Context[Experiment], needs: StageResults) -> Trained | Lost:
        rate, seed = needs[Chosen].rate, context.config.seed
        self.ran.append(f"fit {rate} {seed}")
        if error := self.errors.get((rate, seed)):
            raise error
        if (rate, seed) in self.lost:
            return Lost("diverged")
        return Trained(context.run_id, rate, seed)

    def together(self, instances: Sequence[Instance[Experiment]], ended: Ended[Any]) -> None:
        """Run fits in one call, the last one first."""
        self.calls.append([context.instance for context, _ in instances])
        for place, (context, needs) in reversed(list(enumerate(instances))):
            try:
                outcome: Any = self._fit(context, needs)
            except Exception as error:
                outcome = error
            ended(place, outcome)

    def _mean(self, context: Context[Experiment], needs: StageResults) -> Compared:
        return self._compared("mean", needs)

    def _compare(self, context: Context[Experiment], needs: StageResults) -> Compared:
        return self._compared("compare", needs)

    def _compared(self, name: str, needs: StageResults) -> Compared:
        self.ran.append(name)
        fits = needs.all(Trained)
        return Compared({" ".join(map(str, at)): fit.rate for at, fit in fits.items()})

    def _show(self, context: Context[Experiment], needs: StageResults) -> Shown:
        self.ran.append("show")
        return Shown(str(needs[Compared].rates))

    def run(self, mode: OutputMode = OutputMode.TEXT, **options: Any) -> StageResults:
        self.ran, self.calls = [], []
        config = self.experiment
        return dag.run(
            self.stages(),
            config,
            Invocation(("sweep.py",), Progress(mode)),
            lock_name="test",
            descriptions=describe_pipeline(config.experiment, config.promote.model, ["sweep.py"]),
            fan_out=self.fan_out,
            **options,
        )

    def plan(self, **options: Any) -> list[str]:
        options = {"until": None, "fresh": False, "fan_out": self.fan_out} | options
        planned = dag.plan(self.stages(), self.experiment, **options)
        return [" ".join(line.split()) for line in dag.plan_lines(planned)]

    @cached_property
    def store(self) -> Store:
        place = location.storage_folder(self.experiment.storage)
        return Store.open(self.experiment.experiment, place)
