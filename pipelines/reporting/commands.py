"""The commands that a report shows: how to reproduce the result, and what to run next.

They work as shown in a new shell, in the folder in which the report was made, after those of
`setup_lines`. Used by the summary, the page and the screen.
"""

import itertools
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.comparison.config import MAX_SEED
from pipelines.config.yaml_text import PLAIN_WORD, parse
from pipelines.console.secrets import MASK
from pipelines.console.text import shown_path
from pipelines.experiment import Experiment
from pipelines.reporting.results import Results
from pipelines.reporting.statistics import compare_top_two, resolved_values
from pipelines.search.config import LEARNING_SAMPLERS
from pipelines.storage.location import storage_folder
from pipelines.storage.project import ROOT, command_line, option, script
from pipelines.tracking.encoding import encode_param
from pipelines.tracking.schema import TRAIN_KIND
from pipelines.tracking.uri import database_uri, shown_tracking_uri, tracking_uri

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
    it is the default.
    """
    lines = []
    activate = root / ".venv" / "bin" / "activate"
    if activate.is_file():
        lines.append(shlex.join(["source", shown_path(activate)]))
    if not _is_default(tracking_uri()):
        lines.append(f"export MLFLOW_TRACKING_URI={shlex.quote(shown_tracking_uri())}")
    return lines


def tracking_page_command() -> str:
    """Opens the pages of the tracking store."""
    uri = shown_tracking_uri()
    if not uri.startswith("sqlite"):  # a browser asks for the name and the password
        return shlex.join(["python", "-m", "webbrowser", uri.replace(f"{MASK}@", "")])
    options = [] if _is_default(uri) else ["--backend-store-uri", uri]
    return shlex.join(["mlflow", "ui", *options])


def _is_default(uri: str) -> bool:
    return uri == database_uri(Path("mlflow.db"))


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
    return sweep_command(results) if results.whole or not results.model_uri else _train(results)


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
    if results.version is not None or (results.model_uri and not results.whole):
        purpose = "Train the winner again, and compare its weights bit for bit"
        yield Command(purpose, [_train(results)])
    if results.whole:
        return  # pipelines.reporting.studies.commands
    yield Command("Run the whole pipeline", [sweep_command(results)])
    if lines := replication_commands(results):
        purpose = "Train the winner and the runner-up with more seeds, and compare them"
        yield Command(purpose, lines)


def _extensions(results: Results) -> Iterator[Command]:
    config, name = results.config, results.config.experiment
    if results.keys and config.search.sampler.name in LEARNING_SAMPLERS:
        count = 2 * config.search.trial_count
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

    At the fit's budget. Empty if there is no runner-up.
    """
    pair = compare_top_two(results)
    if pair is None:
        return []
    others = itertools.islice(seeds_after(results.config.seed), EXTRA_SEEDS)
    seeds = " ".join(map(str, others))
    winner = [] if results.version is not None else _overrides(results, pair.winner)
    second = _overrides(results, pair.second)
    report = command_line(script("report.py"), results.config.experiment)
    return [
        f"for seed in {seeds}; do",
        f"  {_train(results, *winner)} seed=$seed",
        f"  {_train(results, *second)} seed=$seed",
        "done",
        report,
    ]


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


def _train(results: Results, *changes: str) -> str:
    source = [config_path(results)]
    if results.version is not None:
        source = ["--from-version", f"{results.config.promote.model}/{results.version}"]
    return command_line(script("train.py"), *source, *changes)


def _generate(results: Results) -> str:
    model, version = results.config.promote.model, results.version
    shown = f"{model}/{version}" if version else str(results.model_uri)
    prompt = option("--prompt", results.config.generate.prompts[0])
    return command_line(script("generate.py"), "--model", shown, *prompt)


def _overrides(results: Results, number: int) -> list[str]:
    """A trial's values as `key=value` arguments of a command."""
    values = resolved_values(results, number)
    return [f"{key}={_override_value(value)}" for key, value in values.items()]


def _override_value(value: Any) -> str:
    if not isinstance(value, str):
        return encode_param(value)
    plain = PLAIN_WORD.fullmatch(value) and parse(value, source=value) == value
    return value if plain else json.dumps(value, ensure_ascii=False)
