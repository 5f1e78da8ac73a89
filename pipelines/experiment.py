"""One experiment: its sections, the rules between them, and how it is read from a command line.

Each section is defined beside the component that reads it. Used by the stages, the report and the
commands. `python -m pipelines.experiment` prints the reference table, with --schema the JSON
schema.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from glob import escape, has_magic
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from dca import ModelConfig, registry
from dca.errors import FieldError
from pipelines.config import schema as config_schema
from pipelines.config.compose import EXTENDS, Layer, merge, read_layers
from pipelines.config.overrides import Change, read_changes
from pipelines.config.section import Section, set_key
from pipelines.config.validation import validate
from pipelines.config.yaml_text import dump, flatten
from pipelines.console.command import Parser, run_command
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import nearest, one_line
from pipelines.data.config import DataConfig
from pipelines.registry.config import GenerateConfig, PromoteConfig
from pipelines.search.config import SearchConfig, SearchTask, search_problems
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
    FailuresConfig,
    FitConfig,
    Resources,
    TrainConfig,
    TrainingRun,
    check_batch,
    check_vocabulary,
)

QUICKSTART = Path(__file__).parents[1] / "experiments" / "quickstart.yaml"
PATHS = ("path", "validation_path", "test_path")
"""Keys of the section `data` that are relative to the file in which they stand."""
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
    resources: Resources = Resources()
    """What one trial takes from the cluster."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    search: SearchConfig = SearchConfig()
    fit: FitConfig = FitConfig()
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
        return self.training_run({**(values or {}), **self.fit.values(self.train)})

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
        Layer(layer.source, _with_whole_paths(layer.data, Path(layer.source).parent))
        for layer in read_layers(path)
    ]
    typed = read_changes([argument for argument in arguments if "=" in argument])
    experiment = _changed(layers, [_with_whole_path(change) for change in typed], grids=grids)
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
                _leave_out(_space(data), key, value)
    return validate(
        Experiment,
        data,
        source=layers[-1].source,
        layers=[*layers, Layer("command line", given)],
        check=problems,
    )


def _leave_out(space: dict[str, Any], key: str, value: Any) -> None:
    """A key with a value is no longer searched, nor are keys that apply with another value only."""
    space.pop(key, None)
    for name, dimension in list(space.items()):
        when = dimension.get("when") if isinstance(dimension, dict) else None
        if isinstance(when, dict) and when.get(key, value) != value:
            del space[name]


def _with_whole_path(change: Change) -> Change:
    """A change of the command line, whose paths are relative to the working folder."""
    section, _, key = change.key.partition(".")
    if section != "data":
        return change
    given = {"data": {key: change.value} if key else change.value}
    whole = _with_whole_paths(given, Path.cwd())["data"]
    return change._replace(value=whole[key] if key else whole)


def _with_whole_paths(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Plain data whose paths of a text are absolute, where they were relative to a folder."""
    section = data.get("data")
    if not isinstance(section, Mapping):
        return dict(data)
    whole = {
        key: _whole_path(value, folder) if key in PATHS and isinstance(value, str) else value
        for key, value in section.items()
    }
    return {**data, "data": whole}


def _whole_path(path: str, folder: Path) -> str:
    if not path or path.startswith("~") or "://" in path or Path(path).is_absolute():
        return path
    whole = folder.absolute() / path
    is_pattern = has_magic(path)
    with suppress(OSError):  # a name that is too long
        is_pattern = is_pattern and not whole.exists()
    return str(Path(escape(str(folder.absolute()))) / path if is_pattern else whole)


def problems(experiment: Experiment) -> Iterator[Problem]:
    """The problems of the search, in an experiment whose fields are valid one by one."""
    search, base, fit = experiment.search, experiment.training_run(), experiment.fit
    found = [*space_problems(search.space, base, fit), *search_problems(search)]
    found += unused_options(search.space, base)
    yield from found or first_point_problems(search, base, fit)


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
