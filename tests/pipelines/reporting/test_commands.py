import shlex

import pytest

from pipelines.experiment import load
from pipelines.reporting.commands import (
    config_path,
    next_commands,
    replication_commands,
    setup_lines,
    tracking_page_command,
)
from pipelines.reporting.page.publish import publish
from tests.pipelines.stored import Made

TWO = [
    Made({"train.learning_rate": 1e-3, "model.residual": "standard"}, [3, 2.5, 2.1, 2.0]),
    Made({"train.learning_rate": 1e-2, "model.residual": "standard"}, [3, 2.6, 2.3, 2.2]),
]


def test_the_commands_name_the_file_beside_the_page(searched, made, tmp_path):
    results = made(searched, TWO, winner=0)
    publish(results)
    assert config_path(results.config) == "runs/reports/tiny/tiny.yaml"
    assert load([config_path(results.config)]) == searched
    sweep = next(one for one in next_commands(results) if one.purpose == "Run the whole pipeline")
    assert sweep.lines == ["python pipelines/sweep.py runs/reports/tiny/tiny.yaml"]


def test_the_winner_and_the_runner_up_are_trained_with_further_seeds(searched, made):
    lines = replication_commands(made(searched, TWO, winner=0))
    assert lines[0] == "for seed in 1 2 3 4; do"
    for line, trial in zip(lines[1:3], TWO, strict=True):
        arguments = shlex.split(line)
        assert arguments[:2] == ["python", "pipelines/train.py"]
        assert f"train.learning_rate={trial.values['train.learning_rate']}" in arguments
        assert f"model.last_k={searched.model.last_k}" in arguments  # the key did not apply
        assert arguments[-1] == "seed=$seed"
    assert lines[3:] == ["done", "python pipelines/report.py tiny"]


def test_without_a_runner_up_there_is_nothing_to_replicate(searched, made):
    assert replication_commands(made(searched, TWO[:1], winner=0)) == []


def test_a_new_shell_needs_the_environment_and_another_stores_uri(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert setup_lines(tmp_path) == []
    activate = tmp_path / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text("")
    assert setup_lines(tmp_path) == ["source .venv/bin/activate"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    assert setup_lines(tmp_path)[1:] == ["export MLFLOW_TRACKING_URI=http://localhost:5000"]


@pytest.mark.parametrize(
    ("uri", "command"),
    [
        ("", "mlflow ui"),
        ("sqlite:////tmp/a.db", "mlflow ui --backend-store-uri sqlite:////tmp/a.db"),
        ("http://localhost:5000", "python -m webbrowser http://localhost:5000"),
    ],
)
def test_the_tracking_pages_are_opened_where_the_store_is(uri, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking_page_command() == command
