"""Descriptions of experiments, runs and models in the MLflow UI: Markdown.

Used by the stages, the recorder and the registry. Each has the command that reproduces the run or
model, and links to related pages.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.compat.mlflow import model_page, run_page
from pipelines.storage.project import command_line, script
from pipelines.tracking.encoding import encode_param
from pipelines.tracking.schema import (
    BEST_RUN_TAG,
    COMPARISON_FILE,
    EXPERIMENT_FILE,
    FIGURES_FOLDER,
    REPORT_FILE,
    STATE_TAG,
    STUDY_FILE,
)
from pipelines.tracking.uri import export_lines


@dataclass(frozen=True)
class Descriptions:
    """The texts of a pipeline's page and of its experiment's page."""

    experiment: str
    pipeline: str


def describe_pipeline(experiment: str, model: str, argv: Sequence[str]) -> Descriptions:
    """Markdown descriptions of an experiment and of the run of a pipeline started by `argv`."""
    link = model_link(model)
    return Descriptions(
        _paragraphs(
            f"Each *pipeline* is one configuration of `{experiment}`, from the text to the "
            "champion. Below it are its stages, and below a *search* its trials. Lower bits per "
            f"byte is better. The report is in a pipeline's artifacts, `{REPORT_FILE}`; the model "
            f"is {link}.",
            "To compare the trials of a search, select them and press *Compare*.",
        ),
        _paragraphs(
            f"One configuration of `{experiment}`. The same command reuses its results:",
            _code(shlex.join(["python", *argv])),
            f"The whole configuration is the artifact `{EXPERIMENT_FILE}`, an experiment by "
            f"itself; the report, once all is done, is `{REPORT_FILE}`. The model is {link}.",
        ),
    )


def describe_search(run_id: str, tokens: int) -> str:
    """Markdown description of a search's run, as true of it after it has grown."""
    return _paragraphs(
        f"Trials of {tokens:,} bytes. The keys that are searched, and how, are parameters of the "
        "pipeline: the same search goes on when they change. The best one is in the tag "
        f"`{BEST_RUN_TAG}`; how each ended is its tag `{STATE_TAG}`.",
        f"Optuna's study is the artifact `{STUDY_FILE}`:",
        _code(
            *_download(run_id, STUDY_FILE),
            "pip install optuna-dashboard",
            f"optuna-dashboard sqlite:///{STUDY_FILE}",
        ),
    )


def describe_trial(number: int, search: str, pipeline_run: str, values: Mapping[str, Any]) -> str:
    """Markdown description of a trial's run; `search` links to its search."""
    return _paragraphs(
        f"Trial {number} of {search}. To train its configuration alone, with the whole budget:",
        _train(pipeline_run, values),
    )


def describe_fit(values: Mapping[str, Any], tokens: int, trial: str, pipeline_run: str) -> str:
    """Markdown description of the run that trains the winner on `tokens`.

    `values` are the winner's changes of the configuration, `trial` is a link to its trial.
    """
    return _paragraphs(
        f"The winner, {trial}, trained on {tokens:,} bytes. The same without a search:",
        _train(pipeline_run, values),
    )


def describe_comparison(table: str, pipeline_run: str) -> str:
    """Markdown description of the run that compares a study's arms: its verdict and its table."""
    return _paragraphs(
        table.strip(),
        "The difference is in bits per byte of the test split, an arm's minus the baseline's of "
        f"the same seed: less is better. The table is the artifacts `{COMPARISON_FILE.format('*')}`"
        f", the figures are in `{FIGURES_FOLDER}`. The whole study again:",
        _code(
            *_download(pipeline_run, EXPERIMENT_FILE),
            command_line(script("sweep.py"), EXPERIMENT_FILE),
        ),
    )


def describe_model(name: str) -> str:
    """Markdown description of a registered model."""
    return _paragraphs(
        "Deep Cross Attention language models of bytes. `challenger` is the newest version, "
        "`champion` the one currently promoted, by the gate on the test bytes, by `--force` or by "
        f"a rollback; every promotion is a version of {model_link(f'{name}-champions')}.",
        _code(
            command_line(script("generate.py"), "--model", name, "--prompt", "TEXT"),
            command_line(script("promote.py"), "list", "--model", name),
        ),
    )


def describe_champions(name: str) -> str:
    """Markdown description of the log of a registered model's champions."""
    return _paragraphs(
        f"Every promotion of {model_link(name)}, a version each. Print it with",
        _code(command_line(script("promote.py"), "history", "--model", name)),
    )


def describe_version(test_bits_per_byte: float, lineage: Sequence[str], uri: str) -> str:
    """Markdown description of a version: its result, links to the runs it comes from, its URI."""
    return _paragraphs(
        f"{test_bits_per_byte:.4f} bits per byte of the test split. From {' → '.join(lineage)}; "
        f"the report is the pipeline's artifact `{REPORT_FILE}`. To retrain it from its "
        "recorded configuration:",
        _code(command_line(script("train.py"), "--from-version", uri)),
    )


def run_link(text: str, experiment_id: str, run_id: str) -> str:
    """A link to a run's page."""
    return f"[{text}]({run_page(experiment_id, run_id)})"


def model_link(name: str) -> str:
    """A link to a registered model's page."""
    return f"[{name}]({model_page(name)})"


def _paragraphs(*parts: str) -> str:
    """Paragraphs, each a line: MLflow's pages keep line breaks."""
    return "\n\n".join(parts)


def _train(pipeline_run: str, values: Mapping[str, Any]) -> str:
    changes = [f"{key}={encode_param(value)}" for key, value in values.items()]
    command = command_line(script("train.py"), EXPERIMENT_FILE, *changes)
    return _code(*_download(pipeline_run, EXPERIMENT_FILE), command)


def _download(run_id: str, file: str) -> list[str]:
    """Fetches an artifact, in the folder of the command that wrote this, from the store that it has
    used."""
    command = f"mlflow artifacts download --run-id {run_id} --artifact-path {file} --dst-path ."
    return [*export_lines(), command]


def _code(*lines: str) -> str:
    return "\n".join(["```", *lines, "```"])
