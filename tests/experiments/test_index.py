"""Every experiment is in the index, and can be run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.runtime.config import Config, load
from pipelines.runtime.tracking import Store
from pipelines.sweep import _arguments
from tests.pipelines.commands import ROOT, WAIT_SECONDS, turn

FOLDER = ROOT / "experiments"
INDEX = (FOLDER / "README.md").read_text()
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
COMMANDS = re.findall(r"^(python .*)$", INDEX, re.M)


def asked(command: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The configuration that a command of the index runs."""
    _, script, *arguments = shlex.split(command)
    assert script == "pipelines/sweep.py"
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.chdir(ROOT)
    return load(_arguments().arguments, grids=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_index_has_the_question_and_a_command_of_every_experiment(name):
    question = (FOLDER / f"{name}.yaml").read_text().splitlines()[1].removeprefix("# ")
    assert question.endswith("?")
    assert f"| [{name}.yaml]({name}.yaml) | {question} |" in INDEX
    (section,) = re.findall(rf"^## {name}\n(.*?)(?=^## )", INDEX, re.M | re.S)
    assert f"python pipelines/sweep.py experiments/{name}.yaml" in section


@pytest.mark.parametrize("command", COMMANDS)
def test_the_indexs_commands_are_valid(command, monkeypatch):
    assert asked(command, monkeypatch).experiment.partition("-")[0] in NAMES


def test_the_commands_of_an_experiment_are_searches_of_their_own(monkeypatch):
    configs = [asked(command, monkeypatch).model_dump_json() for command in COMMANDS]
    assert len(set(configs)) == len(configs) > len(NAMES)


def test_the_indexs_example_composes(tmp_path, monkeypatch):
    for path in FOLDER.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (example,) = re.findall(r"```yaml\n(.*?)```", INDEX, re.S)
    (tmp_path / "mine.yaml").write_text(example)
    config = load([str(tmp_path / "mine.yaml")])
    assert (config.model.dim, config.model.depth, config.data.corpus) == (512, 6, "enwik8")
    assert config.resources.gpus_per_worker == 1
    assert config.search.trial_count == 14


def test_the_enwik8_experiment_is_the_papers_deep_model():
    config = load([str(FOLDER / "enwik8.yaml")])
    model = config.model
    assert (model.depth, model.dim, model.ff_mult, model.residual) == (24, 512, 4, "dca")
    assert {1, 2} <= set(config.search.space["model.last_k"].examples)
    assert config.train.schedule == "inverse_sqrt"
    assert config.fit_config().train.steps == 27_466
    assert "27,466 steps" in INDEX


SEARCHES = """
import sys
from pipelines.runtime import cluster, dag
from pipelines.runtime.config import load
from pipelines.stages import STAGES

dag.leave = lambda: None  # one Ray for all
for name in sys.argv[2:]:
    config = load([name, *sys.argv[1].split()], smoke=True)
    dag.run(STAGES, config, work=config.experiment, until="select", fresh=False)
cluster.leave()
"""
HERE = "data.corpus=files data.path={text} train.compile=false resources={{}} fit.resources={{}}"
"""What this machine need not have: a download, a compiler's minutes, a GPU."""


def test_every_experiments_search_runs_tiny(tmp_path, text, monkeypatch):
    """The quickstart runs whole, by the README's own commands; behind the search all are alike."""
    names = [name for name in NAMES if name != "quickstart"]
    arguments = [HERE.format(text=text), *(str(FOLDER / f"{name}.yaml") for name in names)]
    with turn("beside others") as lock:
        result = subprocess.run(
            [sys.executable, "-c", SEARCHES, *arguments],
            cwd=tmp_path,
            env={k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"},
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            pass_fds=lock,
        )
    assert result.returncode == 0, result.stderr
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for name in names:
        store = Store.open(f"{name}-smoke", Path(tmp_path / "runs"), create=False)
        assert store is not None
        states = [run.data.tags["dca.state"] for run in store.find("trial")]
        assert len(states) == 3, name
        assert set(states) <= {"complete", "pruned"}, name
