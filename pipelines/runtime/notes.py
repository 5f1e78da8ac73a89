"""What the MLflow UI says of an experiment, of its runs and of its models: Markdown.

Each says what it is, how to have it again, and where to look next.
"""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.runtime.config import Config

EXPERIMENT, REPORT, STUDY = "experiment.yaml", "report/report.html", "study.db"
"""Artifacts: the first two of a pipeline's run, the last of a search's."""


def of_experiment(config: Config) -> str:
    """Of an experiment, on top of its runs."""
    return _note(
        f"Each *pipeline* is one configuration of `{config.experiment}`, from the text to the "
        "champion. Below it are its stages, and below a *search* its trials. Less bits per byte is "
        f"better. The report is in a pipeline's artifacts, `{REPORT}`; the model is "
        f"{_model(config)}.",
        "To compare the trials of a search, select them and press *Compare*.",
    )


def of_pipeline(config: Config) -> str:
    """Of a pipeline's run."""
    return _note(
        f"One configuration of `{config.experiment}`. The same command again reuses what is done:",
        _code(shlex.join(["python", *sys.argv])),
        f"The whole configuration is the artifact `{EXPERIMENT}`, an experiment by itself; the "
        f"report, once all is done, is `{REPORT}`. The model is {_model(config)}.",
    )


def of_search(config: Config, run_id: str) -> str:
    """Of a search's run."""
    search = config.search
    keys = ", ".join(f"`{key}`" for key in search.space) or "nothing"
    return _note(
        f"{search.trial_count} trials of {config.train.tokens:,} bytes over {keys}. "
        f"`{search.sampler.name}` proposes them, the scheduler is `{search.scheduler.name}`. The "
        "best one is in the tag `dca.best_run`; how each ended is its tag `dca.state`.",
        f"Optuna's study is the artifact `{STUDY}`:",
        _code(
            _fetch(run_id, STUDY),
            "pip install optuna-dashboard",
            f"optuna-dashboard sqlite:///{STUDY}",
        ),
    )


def of_trial(number: int, search: str, pipeline_run: str, values: Mapping[str, Any]) -> str:
    """Of a trial's run; `search` links to its search."""
    return _note(
        f"Trial {number} of {search}. By itself, and to its whole budget, it is trained by",
        _train(pipeline_run, values),
    )


def of_fit(config: Config, values: Mapping[str, Any], trial: str, pipeline_run: str) -> str:
    """Of the run that trains the winner, whose `values` were found; `trial` links to its trial."""
    full = {
        **values,
        "train.tokens": config.train.tokens,
        "resources.workers": config.resources.workers,
    }
    return _note(
        f"The winner, {trial}, trained on {config.train.tokens:,} bytes. The same without a "
        "search:",
        _train(pipeline_run, full),
    )


def of_model(name: str) -> str:
    """Of a registered model."""
    return _note(
        "Deep Cross Attention language models of bytes. `challenger` is the newest version, "
        "`champion` the one that won on the sealed test bytes; every move of the champion is a "
        f"version of [{name}-champions](#/models/{name}-champions).",
        _code(
            f"python pipelines/generate.py --model {name} --prompt TEXT",
            f"python pipelines/promote.py list --model {name}",
        ),
    )


def of_champions(name: str) -> str:
    """Of the log of a registered model's champions."""
    return _note(
        f"Every move of the champion of [{name}](#/models/{name}), a version each. It is read by",
        _code(f"python pipelines/promote.py history --model {name}"),
    )


def of_version(test_bits_per_byte: float, lineage: Sequence[str], uri: str) -> str:
    """Of a model's version: its result, the runs it comes from as links, and its URI."""
    return _note(
        f"{test_bits_per_byte:.4f} bits per byte of the test split. From {' → '.join(lineage)}; "
        f"the report is the pipeline's artifact `{REPORT}`. The same model once more, from its own "
        "configuration and text:",
        _code(f"python pipelines/train.py --from-version {uri}"),
    )


def link(text: str, experiment_id: str, run_id: str) -> str:
    """To a run."""
    return f"[{text}](#/experiments/{experiment_id}/runs/{run_id})"


def _note(*parts: str) -> str:
    """Paragraphs, each a line: MLflow's pages keep line breaks."""
    return "\n\n".join(parts)


def _model(config: Config) -> str:
    return f"[{config.promote.model}](#/models/{config.promote.model})"


def _train(pipeline_run: str, values: Mapping[str, Any]) -> str:
    changes = [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in values.items()
    ]
    command = ["python", "pipelines/train.py", EXPERIMENT, *changes]
    return _code(_fetch(pipeline_run, EXPERIMENT), shlex.join(command))


def _fetch(run_id: str, file: str) -> str:
    return f"mlflow artifacts download --run-id {run_id} --artifact-path {file} --dst-path ."


def _code(*lines: str) -> str:
    return "\n".join(["```", *lines, "```"])
