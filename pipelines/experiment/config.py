"""The class Experiment: its sections, the rules between them, and the experiments of its arms.

Each section is defined beside the component that reads it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dca import ModelConfig, registry
from dca.errors import FieldError
from pipelines.comparison.config import (
    MAX_SEED,
    SPACE_PREFIX,
    TUNING_SEED,
    ArmName,
    Arms,
    CompareConfig,
    Seeds,
    change_problems,
    replicate_seeds,
)
from pipelines.config.left_out import leave_out
from pipelines.config.section import Section, get_key, set_key
from pipelines.config.validation import validate, worded
from pipelines.config.yaml_text import dump, flatten
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import nearest, one_line, quote_value
from pipelines.data.config import DataConfig
from pipelines.experiment.space_checks import (
    MAX_SIZES,
    first_point_problems,
    space_problems,
    unused_options,
)
from pipelines.registry.config import GenerateConfig, PromoteConfig
from pipelines.search.config import SearchConfig, SearchTask, search_problems
from pipelines.search.space import FIXED, TRAINING_KEYS
from pipelines.storage.location import Place
from pipelines.training.config import (
    FailuresConfig,
    FitConfig,
    Resources,
    TrainConfig,
    TrainingRun,
    check_batch,
    check_vocabulary,
    without_options_of_others,
)

RUN_SECTIONS = tuple(TrainingRun.model_fields)
NO_STUDY: dict[str, Any] = {"arms": {}, "baseline": None, "seeds": None, "budget": "tokens"}
"""Values of the keys that make a study, in an experiment that is none."""
ARM_KEYS = [key for key in TRAINING_KEYS if key not in FIXED]
"""Keys that an arm may have values of."""


class Experiment(Section):
    """One experiment."""

    dotted: ClassVar[tuple[str, ...]] = ("search.space",)

    experiment: Annotated[
        str,
        *worded(
            r"[. ]*\w[\w.\- ]*",
            "letters, digits, spaces and _ - ., with no - before the first letter",
        ),
    ]
    """Name; also the MLflow experiment's, and that of folders: not of dots alone."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the weights, the order of the data and the sampler."""
    storage: Annotated[Place, Field(min_length=1)] = "runs"
    """Where the corpus, checkpoints and artifacts are kept: a folder of this machine, or one that
    every node sees, such as s3://bucket/folder, gs://bucket/folder or file:///mnt/folder (see
    docs/storage.md)."""
    tensorboard: bool = False
    """Whether to write what goes to MLflow as TensorBoard events too; storage must then be a folder
    of this machine."""
    arms: Arms = {}
    """The arms of a study, which is made of two or more: by the name of each its changes of keys of
    model, train and search.space, as in {standard: {model.residual: standard}, dca-4:
    {model.dca.last_k: 4}} (see docs/configuration.md)."""
    baseline: ArmName | None = None
    """The arm that the others are compared with; null: the first."""
    seeds: Seeds = None
    """Seeds with which the winner of each search is trained, a list, or how many, 0, 1, 2 and on.
    null: 1 with arms; without them there is one training, with `seed`."""
    budget: Literal["tokens", "time"] = "tokens"
    """What the arms have in common: tokens, or time, in which an arm with faster steps has more
    tokens."""
    resources: Resources = Resources()
    """What one trial takes from the cluster."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    search: SearchConfig = SearchConfig()
    fit: FitConfig = FitConfig()
    compare: CompareConfig = CompareConfig()
    failures: FailuresConfig = FailuresConfig()
    promote: PromoteConfig = PromoteConfig()
    generate: GenerateConfig = GenerateConfig()

    @model_validator(mode="after")
    def _sections_fit(self) -> "Experiment":
        check_batch(self.train, self.resources)
        self.fit.check(self.train)
        if self.tensorboard and "://" in self.storage:
            raise FieldError("tensorboard", "expected storage to be a folder: events are appended")
        check_vocabulary(self.model)
        for key, limit in MAX_SIZES.items():
            if (size := attrgetter(key)(self)) is not None and size > limit:
                raise FieldError(
                    key, f"expected at most {limit:,}, got {one_line(f'{size:,}', limit=60)}"
                )
        return self

    @model_validator(mode="after")
    def _study_is_complete(self) -> "Experiment":
        if len(self.arms) == 1:
            raise FieldError("arms", f"expected two or more, got {', '.join(self.arms)} alone")
        if self.baseline is not None and self.baseline not in self.arms:
            near = nearest(self.baseline, self.arms)
            message = "expected the name of an arm" if self.arms else "expected null without arms"
            raise FieldError("baseline", f"{message}, got {quote_value(self.baseline)}", near)
        if self.budget == "time" and not self.arms:
            raise FieldError("budget", "expected tokens without arms: there is nothing to share")
        if len(set(self.replicate_seeds)) < len(self.replicate_seeds):
            raise FieldError("seeds", "expected each seed once")
        if self.is_study and self.tuning_seed in self.replicate_seeds:
            message = f"expected others than {self.tuning_seed}, with which the search chooses"
            raise FieldError("seeds", f"{message}: its winner is one that does well with it")
        if self.arms and self.search.warm_start:
            message = "expected none with arms, which are all tuned alike"
            raise FieldError("search.warm_start", message)
        return self

    @property
    def is_study(self) -> bool:
        """Whether several trainings are compared: of arms, or of seeds."""
        return bool(self.arms) or self.seeds is not None

    @property
    def arm_names(self) -> tuple[str, ...]:
        """The arms in their order; none without `arms`."""
        return tuple(self.arms)

    @property
    def baseline_arm(self) -> str:
        """`baseline`, resolved; empty without arms."""
        return self.baseline or next(iter(self.arms), "")

    @property
    def tuning_seed(self) -> int:
        """The seed of the searches, which is none of the replicates'.

        Without arms `seed`, so that a search that is there is reused when seeds are asked for.
        """
        return (TUNING_SEED + self.seed) % MAX_SEED if self.arms else self.seed

    @property
    def replicate_seeds(self) -> tuple[int, ...]:
        """The seeds of each arm's trainings; without a study the one `seed`."""
        if not self.is_study:
            return (self.seed,)
        return replicate_seeds(self.seeds or 1, self.tuning_seed)

    def without_study(self) -> Self:
        """The same with one arm, its own, and one seed."""
        return self.model_copy(update=NO_STUDY)

    def of_seed(self, seed: int) -> Self:
        """The experiment of one replicate, which is no study: its curve is evaluated as in one."""
        fit = self.fit.of_study(self.train) if self.is_study else self.fit
        return self.without_study().model_copy(update={"seed": seed, "fit": fit})

    def of_arm(self, name: str) -> Self:
        """The experiment of one arm, with the seed of its search. Raises ConfigError.

        As after changes on the command line a key with a value is no longer searched; nor are keys
        whose conditions do not hold in this arm.
        """
        data = self.of_seed(self.tuning_seed).model_dump(mode="json")
        space = data["search"]["space"]
        for key, value in self.arms[name].items():
            if not key.startswith(SPACE_PREFIX):
                set_key(data, key, value)
                leave_out(space, key, value, partial(get_key, data))
        for key, value in self.arms[name].items():
            if key.startswith(SPACE_PREFIX):
                set_key(data, key, value, dotted=self.dotted)
        arm = validate(type(self), data)
        values = dict(flatten(arm.training_run().model_dump(mode="json")))
        return arm.model_copy(update={"search": arm.search.applicable(values)})

    @property
    def by_arm(self) -> dict[str, Self]:
        """The experiment of each arm; without arms that of the one search, under an empty name."""
        names = self.arm_names
        return {name: self.of_arm(name) for name in names} or {"": self.of_seed(self.tuning_seed)}

    @property
    def untuned_baseline(self) -> str:
        """A warning if an arm is tuned and the baseline is not; else empty."""
        tuned = [name for name, arm in self.by_arm.items() if arm.search.space]
        if not tuned or self.baseline_arm in ("", *tuned):
            return ""
        return (
            f"{self.baseline_arm}, the baseline, is not tuned, but {tuned[0]} is: what tuning "
            "gains will count as the arm's; expected a search.space for all arms"
        )

    def replace(self, values: Mapping[str, Any], *, explain: bool = True) -> Self:
        """The same with some dotted keys changed, its search checked too. Raises ConfigError."""
        replaced = super().replace(values, explain=explain)
        if found := list(problems(replaced)):
            raise ConfigError(*found)
        return replaced

    def training_run(self, values: Mapping[str, Any] | None = None) -> TrainingRun:
        """The configuration of one trial: the base, with these values of searched keys.

        Raises ConfigError if the values do not go together.
        """
        run = TrainingRun(**{name: getattr(self, name) for name in RUN_SECTIONS})
        return run.replace(values) if values else run

    def fit_run(self, values: Mapping[str, Any] | None = None) -> TrainingRun:
        """The final training: a trial's values with the fit's budget and resources."""
        fit = self.fit.of_study(self.train) if self.is_study else self.fit
        return self.training_run({**(values or {}), **fit.values(self.train)})

    def fit_changes(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What the final training changes in this experiment's own, by dotted key.

        For commands that train it without a search: its resources may change its numbers too.
        """
        both = self.training_run(), self.fit_run(values)
        base, fit = (dict(flatten(run.model_dump(mode="json"))) for run in both)
        return {key: value for key, value in fit.items() if value != base[key]}

    def as_fit(self, values: Mapping[str, Any]) -> Self:
        """The experiment of that training alone, without a search."""
        run = self.fit_run(values)
        alone = {"model": run.model, "train": run.train, "search": SearchConfig()}
        return self.model_copy(update=alone)

    def search_task(self) -> SearchTask:
        """The search, and the training run that its trials vary."""
        base = self.training_run()
        place = (self.experiment, self.storage, self.tensorboard)
        return SearchTask(*place, base, self.search, self.fit)

    def model_modules(self) -> set[str]:
        """The modules of the architectures and residual kinds that it may train."""
        both = (registry.architecture, registry.residual)
        return {names.module(name) for names in both for name in self._chosen(names.field)}

    def key_values(self) -> Iterator[tuple[str, Any]]:
        """Dotted keys and values, without options of residual kinds that it cannot train."""
        kinds, key = self._chosen("residual"), "model.residual"
        for changes in self.arms.values():
            searched = (changes.get(f"{SPACE_PREFIX}{key}") or {}).get("choice", [])
            kinds |= {str(kind) for kind in (changes.get(key, self.model.residual), *searched)}
        return without_options_of_others(flatten(self.model_dump(mode="json")), kinds)

    def _chosen(self, field: str) -> set[str]:
        """The names that a field of the model may have."""
        dimension = self.search.space.get(f"model.{field}")
        searched = dimension.choice if dimension and dimension.choice else []
        return {str(name) for name in (getattr(self.model, field), *searched)}

    def with_run(self, run: TrainingRun) -> dict[str, Any]:
        """This experiment as plain data, with a run's sections in place of its own."""
        return {**self.model_dump(mode="json"), **run.model_dump(mode="json")}

    def to_yaml(self) -> str:
        """The text of an experiment with every key, defaults included, that is read as this one."""
        data = self.model_dump(mode="json")
        data["search"]["space"] = {
            key: dimension.model_dump(mode="json", exclude_defaults=True)
            for key, dimension in self.search.space.items()
        }
        return dump(data)


FIELDS = dict(flatten(Experiment(experiment="x").model_dump(mode="json")))
"""The default of every dotted key."""


def problems(experiment: Experiment) -> Iterator[Problem]:
    """The problems of the searches, in an experiment whose fields are valid one by one.

    What is wrong in all arms is a problem of the experiment, anything else one of an arm. An option
    that no training can use is one too; in a study it may be used by some arms only.
    """
    if not experiment.arms:
        found = _search_problems(experiment)
        yield from found or _unused(experiment)
        return
    by_arm = {name: _arm_problems(experiment, name) for name in experiment.arms}
    if any(by_arm.values()):
        yield from _named(experiment, by_arm)
        return
    arms = {name: experiment.of_arm(name) for name in experiment.arms}
    yield from _useless(experiment, arms)
    yield from _unsearched(experiment, arms)
    yield from _equal_arms(arms)


def _search_problems(experiment: Experiment) -> list[Problem]:
    search, base, fit = experiment.search, experiment.training_run(), experiment.fit
    found = [*space_problems(search.space, base, fit), *search_problems(search)]
    return found or list(first_point_problems(search, base, fit))


def _unused(experiment: Experiment) -> list[Problem]:
    return list(unused_options(experiment.search.space, experiment.training_run()))


def _arm_problems(experiment: Experiment, name: str) -> list[Problem]:
    if found := list(change_problems(experiment.arms[name], ARM_KEYS, fixed=FIXED)):
        return found
    try:
        return _search_problems(experiment.of_arm(name))
    except ConfigError as error:
        return error.problems


def _named(experiment: Experiment, by_arm: Mapping[str, Sequence[Problem]]) -> Iterator[Problem]:
    """Problems of arms: those of a key that the arm has changed, those that all arms have, and
    those that some have."""
    arms = experiment.arms
    changed = {key for changes in arms.values() for key in changes}
    every = [one for one in by_arm[experiment.baseline_arm] if one.key not in changed]
    every = [one for one in every if all(one in found for found in by_arm.values())]
    yield from every
    for name, found in by_arm.items():
        for problem in found:
            if problem.key in arms[name]:
                yield replace(problem, key=f"arms.{name}.{problem.key}")
            elif problem not in every:
                yield problem.at(f"arms.{name}")


def _useless(experiment: Experiment, arms: Mapping[str, Experiment]) -> Iterator[Problem]:
    """Options that an arm gives and cannot use, and those of the experiment that no arm can."""
    by_arm = {name: {one.key: one for one in _unused(arm)} for name, arm in arms.items()}
    common: dict[str, Problem] = {}
    for name, found in by_arm.items():
        for key, problem in found.items():
            if key in experiment.arms[name]:
                yield replace(problem, key=f"arms.{name}.{key}")
            else:
                common.setdefault(key, problem)
    for key, problem in common.items():
        having = {
            name
            for name, arm in arms.items()
            if not key.startswith(SPACE_PREFIX)
            or key.removeprefix(SPACE_PREFIX) in arm.search.space
        }
        if all(key in by_arm[name] for name in having):
            yield problem


def _unsearched(experiment: Experiment, arms: Mapping[str, Experiment]) -> Iterator[Problem]:
    """Dimensions of the experiment that drop out in every arm."""
    searched = {key for arm in arms.values() for key in arm.search.space}
    for key in experiment.search.space.keys() - searched:
        why = "each has a value of its own, or does not meet its conditions"
        yield Problem(f"no arm searches it ({why}): expected null", f"{SPACE_PREFIX}{key}")


def _equal_arms(arms: Mapping[str, Experiment]) -> Iterator[Problem]:
    """Arms that train the same models; options of kinds that they do not train make no other."""
    read = {name: dict(arm.key_values()) for name, arm in arms.items()}
    for (name, arm), (other, same) in combinations(arms.items(), 2):
        if read[name] != read[other]:
            continue
        given = dict(flatten(same.model_dump(mode="json")))
        unread = [k for k, v in flatten(arm.model_dump(mode="json")) if v != given.get(k)]
        why = f", which does not read {', '.join(unread)}" if unread else ""
        yield Problem(f"the same as {name}{why}: expected another configuration", f"arms.{other}")
