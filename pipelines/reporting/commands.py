"""The commands that a report shows: how to reproduce the result, and what to run next.

They work as shown in a new shell, in the folder in which the report was made, after those of
`setup_lines`. Used by the summary, the page and the screen.
"""

import itertools
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.comparison.config import MAX_SEED
from pipelines.config.yaml_text import PLAIN_WORD, parse
from pipelines.console.errors import ConfigError
from pipelines.console.secrets import MASK
from pipelines.console.text import shown_path
from pipelines.experiment import Experiment
from pipelines.reporting.results import Results
from pipelines.reporting.statistics import compare_top_two, resolved_values
from pipelines.search.config import LEARNING_SAMPLERS, MAX_TRIALS
from pipelines.storage.location import storage_folder
from pipelines.storage.project import ROOT, command_line, option, script
from pipelines.tracking.encoding import encode_param
from pipelines.tracking.schema import FIT_KIND, TRAIN_KIND, TRAIN_TOKENS_PARAM
from pipelines.tracking.uri import export_lines, shown_tracking_uri, taken_by_itself

EXTRA_SEEDS = 4
"""Further seeds with which the winner and the runner-up are to be trained."""
RUN_DIGITS = 8
"""Of a pipeline run's id, in the name of its report's folder."""
LONGER_FACTOR = 4
"""Budget of a longer fit, in budgets of this one."""


@dataclass(frozen=True)
class Command:
    """A command to run, of one or more lines."""

    purpose: str
    lines: list[str]


def setup_lines(root: Path = ROOT) -> list[str]:
    """What a new shell needs once before the other commands.

    The environment of the project at `root`, if it has one, and the tracking store's URI unless
    it is taken by itself.
    """
    activate = root / ".venv" / "bin" / "activate"
    lines = [shlex.join(["source", shown_path(activate)])] if activate.is_file() else []
    return [*lines, *export_lines()]


def tracking_page_command() -> str:
    """Opens the pages of the tracking store."""
    uri = shown_tracking_uri()
    if not uri.startswith("sqlite"):  # a browser asks for the name and the password
        return shlex.join(["python", "-m", "webbrowser", uri.replace(f"{MASK}@", "")])
    options = [] if taken_by_itself() else ["--backend-store-uri", uri]
    return shlex.join(["mlflow", "ui", *options])


def report_folder(config: Experiment) -> Path:
    """Folder of the experiment's newest report.

    In the storage, or in the current folder if the storage is not a local folder.
    """
    storage = storage_folder(config.storage)
    return (storage if isinstance(storage, Path) else Path.cwd()) / "reports" / config.experiment


def run_folder(config: Experiment, pipeline_run: str) -> Path:
    """Folder of the report of one pipeline run, which those of later ones do not replace."""
    return report_folder(config) / pipeline_run[:RUN_DIGITS]


def config_file(config: Experiment) -> str:
    """Name of the experiment's YAML file in the report's folder."""
    return f"{config.experiment}.yaml"


def config_path(results: Results) -> str:
    """Path of that file in the commands: the one of the pipeline run, which stays as it is."""
    config = results.config
    return shown_path(run_folder(config, results.pipeline.info.run_id) / config_file(config))


def reproduction_command(results: Results) -> str:
    """Trains the winner again; without a model, or of a study, runs the whole pipeline again."""
    again = "" if results.whole else _retraining(results)
    return again or sweep_command(results)


def next_commands(results: Results) -> list[Command]:
    """What reproduces the result, what makes it more certain, and what builds on it."""
    name = results.config.experiment
    commands = [*_repetitions(results), *([] if results.whole else _extensions(results))]
    if results.model_uri:
        commands.append(Command("Generate text with the model", [_generate(results)]))
    report = command_line(script("report.py"), name)
    return [
        *commands,
        Command("Show all runs, curves and versions", [tracking_page_command()]),
        Command("Write this page again", [report]),
    ]


def _repetitions(results: Results) -> Iterator[Command]:
    if results.version is not None:
        purpose = "Train the model again, and compare its weights bit for bit"
        yield Command(purpose, [_train_version(results)])
    elif not results.whole and (again := _retraining(results)):
        yield Command("Train the winner again", [again])
    if results.whole:
        return  # pipelines.reporting.studies.commands
    yield Command("Run the whole pipeline", [sweep_command(results)])
    if lines := replication_commands(results):
        purpose = "Train the winner and the runner-up with more seeds, and compare them"
        yield Command(purpose, lines)


def _extensions(results: Results) -> Iterator[Command]:
    config, name = results.config, results.config.experiment
    if TRAIN_KIND in results.stages:
        budget = LONGER_FACTOR * config.train.tokens
        yield Command("Train longer", [sweep_command(results, f"{TRAIN_TOKENS_PARAM}={budget}")])
        return
    if results.keys and config.search.sampler.name in LEARNING_SAMPLERS:
        count = min(2 * config.search.trial_count, MAX_TRIALS)
        changes = [
            experiment_change(f"{name}-2"),
            f"search.warm_start=[{_override_value(name)}]",
            f"search.trials={count}",
        ]
        purpose = "Start a new search from the results of these trials"
        yield Command(purpose, [sweep_command(results, *changes)])
    budget = LONGER_FACTOR * config.fit_run().train.tokens
    purpose = "Train the winner longer; the search is reused"
    yield Command(purpose, [sweep_command(results, f"fit.tokens={budget}")])


def replication_commands(results: Results) -> list[str]:
    """Shell lines that train the winner and the runner-up with more seeds, and report again.

    As the fit trains, if there is one, else as a trial. Empty if there is no runner-up, or the fit
    cannot train it, whose workers may have become others since the trial ran.
    """
    pair = compare_top_two(results)
    if pair is None:
        return []
    others = itertools.islice(seeds_after(results.config.seed), EXTRA_SEEDS)
    seeds = " ".join(map(str, others))
    try:
        both = [_training(results, number) for number in (pair.winner, pair.second)]
    except ConfigError:
        return []
    report = command_line(script("report.py"), results.config.experiment)
    trained = [f"  {line} seed=$seed" for line in both]
    return [f"for seed in {seeds}; do", *trained, "done", report]


def sweep_command(results: Results, *changes: str) -> str:
    """Runs the whole pipeline, with `key=value` changes."""
    command = script("sweep.py" if TRAIN_KIND not in results.stages else "train.py")
    return command_line(command, config_path(results), *changes)


def seeds_after(seed: int) -> Iterator[int]:
    """The seeds that follow one, and from 0 on behind the largest."""
    return (number % MAX_SEED for number in itertools.count(seed + 1))


def experiment_change(name: str) -> str:
    """The argument of a command that gives an experiment another name."""
    return f"experiment={_override_value(name)}"


def _retraining(results: Results) -> str:
    """Trains the model again: the version, or the winner's values as the fit did; else empty."""
    if results.version is not None:
        return _train_version(results)
    if FIT_KIND not in results.stages or not results.model_uri or results.winner is None:
        return ""
    return _training(results, results.winner)


def _training(results: Results, number: int) -> str:
    """Trains a trial's values as the fit trains, or as a trial while there is no fit.

    Raises ConfigError if the fit cannot train them.
    """
    values, fitted = resolved_values(results, number), FIT_KIND in results.stages
    changes = results.config.fit_changes(values) if fitted else {}
    if results.version is None:
        return command_line(script("train.py"), config_path(results), *_arguments(values | changes))
    return _train_version(results, *([] if number == results.winner else _arguments(values)))


def _train_version(results: Results, *changes: str) -> str:
    """Trains the winner's version again, with changes."""
    version = f"{results.config.promote.model}/{results.version}"
    return command_line(script("train.py"), "--from-version", version, *changes)


def _generate(results: Results) -> str:
    model, version = results.config.promote.model, results.version
    shown = f"{model}/{version}" if version else str(results.model_uri)
    prompt = option("--prompt", results.config.generate.prompts[0])
    return command_line(script("generate.py"), "--model", shown, *prompt)


def _arguments(values: Mapping[str, Any]) -> list[str]:
    """Values by dotted key as `key=value` arguments of a command."""
    return [f"{key}={_override_value(value)}" for key, value in values.items()]


def _override_value(value: Any) -> str:
    if not isinstance(value, str):
        return encode_param(value)
    plain = PLAIN_WORD.fullmatch(value) and parse(value, source=value) == value
    return value if plain else json.dumps(value, ensure_ascii=False)
