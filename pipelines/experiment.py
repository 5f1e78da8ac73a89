"""One experiment: its sections, the rules between them, and how it is read from a command line.

Each section is defined beside the component that reads it. Used by the stages, the report and the
commands. `python -m pipelines.experiment` prints the reference table, with --schema the JSON
schema.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dca import ModelConfig, registry
from dca.errors import FieldError
from pipelines.comparison.config import (
    MAX_SEED,
    SPACE_PREFIX,
    TUNING_SEED,
    Arms,
    CompareConfig,
    Seeds,
    key_problems,
    replicate_seeds,
)
from pipelines.config import schema as config_schema
from pipelines.config.compose import EXTENDS, Layer, merge, read_layers
from pipelines.config.overrides import Change, read_changes
from pipelines.config.section import Section, set_key
from pipelines.config.validation import validate
from pipelines.config.yaml_text import dump, flatten
from pipelines.console.command import Parser, run_command
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import nearest, one_line, quote_value
from pipelines.data.config import DataConfig, with_whole_path, with_whole_paths
from pipelines.registry.config import GenerateConfig, PromoteConfig
from pipelines.search.config import SearchConfig, SearchTask, leave_out, search_problems
from pipelines.search.space import (
    FIXED,
    RUN_KEYS,
    TRAINING_KEYS,
    first_point_problems,
    space_problems,
    unused_options,
)
from pipelines.storage.location import Place
from pipelines.training.config import (
    SCHEDULE_OPTIONS,
    FailuresConfig,
    FitConfig,
    Resources,
    TrainConfig,
    TrainingRun,
    check_batch,
    check_vocabulary,
)

QUICKSTART = Path(__file__).parents[1] / "experiments" / "quickstart.yaml"
UNUSED = {name for key in SCHEDULE_OPTIONS for name in (key, f"{SPACE_PREFIX}{key}")}
"""Keys of which one arm may make no use if another does."""
RUN_SECTIONS = tuple(TrainingRun.model_fields)


class Experiment(Section):
    """One experiment."""

    dotted: ClassVar[tuple[str, ...]] = ("search.space",)

    experiment: Annotated[str, Field(min_length=1, pattern=r"^[\w.\- ]*[\w\- ][\w.\- ]*$")]
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
    {model.last_k: 4}} (see docs/configuration.md)."""
    baseline: str | None = None
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
            message = f"expected others than {self.tuning_seed}, the seed of the search: its winner"
            raise FieldError("seeds", f"{message} was chosen by its result with that seed")
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

    def of_seed(self, seed: int) -> Self:
        """The experiment of one replicate, which is no study: its curve is evaluated as in one."""
        fit = self.fit.of_study(self.train) if self.is_study else self.fit
        alone: dict[str, Any] = {"arms": {}, "baseline": None, "seeds": None, "budget": "tokens"}
        return self.model_copy(update={**alone, "seed": seed, "fit": fit})

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
                leave_out(space, key, value)
        for key, value in self.arms[name].items():
            if key.startswith(SPACE_PREFIX):
                set_key(data, key, value, dotted=self.dotted)
        arm = validate(type(self), data)
        return arm.model_copy(update={"search": arm.search.applicable(arm.training_run().get)})

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
        found = set()
        for names in (registry.architecture, registry.residual):
            dimension = self.search.space.get(f"model.{names.field}")
            searched = dimension.choice if dimension and dimension.choice else []
            chosen = {getattr(self.model, names.field), *searched}
            found |= {names.module(str(name)) for name in chosen}
        return found

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


def load(arguments: Sequence[str], *, smoke: bool = False, grids: bool = False) -> Experiment:
    """The experiment of a command line, [EXPERIMENT.yaml] [key=value ...]. Raises ConfigError.

    Args:
        arguments: Without a file it is experiments/quickstart.yaml; values are YAML.
        smoke: Whether to shrink it to a run of seconds.
        grids: Whether a key of model or train may have several values, key=a,b: the search is then
            the grid of these.

    """
    files = [argument for argument in arguments if "=" not in argument]
    if len(files) > 1 or "" in files:
        expected = "expected at most one experiment and key=value changes to it"
        message = f"{expected}, got {one_line(json.dumps(files))}"
        raise ConfigError(Problem(message, source="command line"))
    path = Path(files[0]) if files else QUICKSTART
    layers = [
        Layer(layer.source, with_whole_paths(layer.data, Path(layer.source).parent))
        for layer in read_layers(path)
    ]
    typed = read_changes([argument for argument in arguments if "=" in argument])
    experiment = _changed(layers, [with_whole_path(change) for change in typed], grids=grids)
    if not smoke:
        return experiment
    try:
        return _shrink(experiment)
    except ConfigError as error:  # the space does not fit the tiny sizes
        problems = (replace(problem, source="--smoke") for problem in error.problems)
        raise ConfigError(*problems) from None


def read_experiment(
    data: Mapping[str, Any], overrides: Sequence[str] = (), *, source: str
) -> Experiment:
    """The experiment of plain data with `key=value` changes. Raises ConfigError."""
    return _changed([Layer(source, data)], read_changes(overrides))


def read_stored(data: Mapping[str, Any], *, source: str) -> Experiment:
    """The experiment of an earlier run, whose search is not checked again. Raises ConfigError.

    It has run, perhaps with an older version, and its results can be read whatever is refused now.
    """
    return validate(Experiment, data, source=source)


def read_packaged(
    data: Mapping[str, Any], overrides: Sequence[str] = (), *, source: str
) -> Experiment:
    """The experiment of a packaged model, without the search. Raises ConfigError.

    The values are those of one trial, on which the search space need not be valid.
    """
    return read_experiment({**data, "search": {}}, overrides, source=source)


def _changed(
    layers: Sequence[Layer], changes: Sequence[Change], *, grids: bool = False
) -> Experiment:
    data = merge(layers, dotted=Experiment.dotted)
    given: dict[str, Any] = {}
    for change in _as_search(changes, grids=grids):
        set_key(given, change.key, change.value, dotted=Experiment.dotted)
        set_key(data, change.key, change.value, dotted=Experiment.dotted)
        if not change.key.startswith("search."):
            for key, value in flatten({change.key: change.value}):
                leave_out(_space(data), key, value)
    return validate(
        Experiment,
        data,
        source=layers[-1].source,
        layers=[*layers, Layer("command line", given)],
        check=problems,
    )


def problems(experiment: Experiment) -> Iterator[Problem]:
    """The problems of the searches, in an experiment whose fields are valid one by one.

    What is wrong in all arms is a problem of the experiment, anything else one of an arm.
    """
    if not experiment.arms:
        yield from _search_problems(experiment)
        return
    found = {name: _arm_problems(experiment, name) for name in experiment.arms}
    first = found[experiment.baseline_arm]
    of_all = [one for one in first if all(one in own for own in found.values())]
    yield from of_all
    for name, own in found.items():
        changes = experiment.arms[name]
        for problem in own:
            if problem.key in changes:
                yield replace(problem, key=f"arms.{name}.{problem.key}")
            elif problem not in of_all and problem.key not in UNUSED:
                yield problem.at(f"arms.{name}")


def _search_problems(experiment: Experiment) -> list[Problem]:
    search, base, fit = experiment.search, experiment.training_run(), experiment.fit
    found = [*space_problems(search.space, base, fit), *search_problems(search)]
    found += unused_options(search.space, base)
    return found or list(first_point_problems(search, base, fit))


def _arm_problems(experiment: Experiment, name: str) -> list[Problem]:
    if found := list(key_problems(experiment.arms[name], TRAINING_KEYS)):
        return found
    try:
        return _search_problems(experiment.of_arm(name))
    except ConfigError as error:
        return error.problems


def _as_search(changes: Sequence[Change], *, grids: bool) -> list[Change]:
    """The same changes, with several values of a key as a dimension of a grid search.

    A grid replaces the file's space and what belongs to it, but not its scheduler and limits.
    """
    if not any(change.is_list for change in changes):
        return list(changes)
    grid_search = [
        Change("search.space", {}),
        Change("search.sampler.name", "grid"),
        Change("search.trials", None),
        Change("search.try_first", []),
        Change("search.warm_start", []),
    ]
    return [*grid_search, *(_dimension(c, grids) if c.is_list else c for c in changes)]


def _dimension(change: Change, grids: bool) -> Change:
    """Several values of a key as a dimension. Raises ConfigError if they are none of a grid."""
    keys = TRAINING_KEYS if grids else []
    where = f"command line: {one_line(change.text)}"
    if change.key not in keys:
        message = (
            "a comma list is a grid, for sweep.py, over a key of model or train; text with a comma "
            "needs quotes"
        )
        raise ConfigError(Problem(message, source=where, nearest=nearest(change.key, keys)))
    if any(isinstance(value, list | dict) for value in change.value):
        message = "expected a number, a word or null between commas"
        raise ConfigError(Problem(message, source=where))
    distinct = {(isinstance(value, bool), value) for value in change.value}  # 0 is 0.0
    if len(distinct) < len(change.value):
        raise ConfigError(Problem("expected each value once", source=where))
    return Change(f"search.space.{change.key}", {"choice": change.value})


def _space(data: Mapping[str, Any]) -> dict[str, Any]:
    search = data.get("search")
    space = search.get("space") if isinstance(search, dict) else None
    return space if isinstance(space, dict) else {}


def _shrink(experiment: Experiment) -> Experiment:
    """The experiment shrunk to a run of seconds through every stage.

    The experiment and the registered model have other names, so that no real champion changes.
    """
    workers = math.lcm(experiment.resources.max_workers, experiment.fit.resources.max_workers)
    train, model, search = experiment.train, experiment.model, experiment.search
    batch = train.seq_len * workers * math.ceil(4 / workers)
    changes = {
        "experiment": f"{experiment.experiment}-smoke",
        "promote.model": f"{experiment.promote.model}-smoke",
        "model.dim": min(model.dim, 8 * model.heads),
        "model.depth": min(model.depth, 2),
        "train.batch_tokens": batch,
        "train.micro_batch_tokens": None,
        "train.tokens": 12 * batch,
        "train.evals": 4,
        "train.eval_tokens": 4 * train.seq_len,
        "train.log_every_steps": 3,
        "search.trials": min(search.trial_count, 3),
        "search.try_first": search.try_first[:3],
        "search.warm_start": [],
        "fit.tokens": 16 * batch,
        "generate.max_new_tokens": min(experiment.generate.max_new_tokens, 40),
    }
    data = experiment.model_dump(mode="json")
    for key, value in changes.items():
        set_key(data, key, value)
    return validate(Experiment, data, check=problems)


def schema() -> dict[str, Any]:
    """The JSON schema of a file, a whole experiment or a part of one, for editors."""
    found = Experiment.model_json_schema()
    del found["required"]  # by a part of an experiment
    space = found["$defs"]["SearchConfig"]["properties"]["space"]
    space["propertyNames"] = {"enum": [key for key in TRAINING_KEYS if key not in FIXED]}
    space["additionalProperties"] = {"anyOf": [space["additionalProperties"], {"type": "null"}]}
    found["$defs"]["Dimension"]["properties"]["when"]["propertyNames"] = {"enum": RUN_KEYS}
    file = {"type": "string", "minLength": 1}
    extends = {
        "anyOf": [file, {"type": "array", "items": file}],
        "description": "Files to extend, relative to this one: later ones win, and this one last.",
    }
    found["properties"] = {EXTENDS: extends, **found["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def reference() -> str:
    """The table of every key with its default and meaning, as in docs/configuration.md."""
    return config_schema.reference(Experiment.model_json_schema(), FIELDS)


def main(argv: Sequence[str]) -> int:
    """Print the reference table of all keys, or their JSON schema."""
    parser = Parser(prog="python -m pipelines.experiment", description=main.__doc__)
    parser.add_argument("--schema", action="store_true", help="the text of experiments/schema.json")
    arguments = parser.parse_args(argv)
    print(json.dumps(schema(), indent=2) if arguments.schema else reference())
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
