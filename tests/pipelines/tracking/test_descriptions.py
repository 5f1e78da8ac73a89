"""The commands in descriptions of runs and models."""

import re
import shlex
from pathlib import Path

import pytest

from pipelines.storage.project import ROOT
from pipelines.tracking import descriptions


@pytest.mark.parametrize("below", [True, False])
def test_commands_name_the_scripts_as_they_are_called_from_the_current_folder(
    below, tmp_path, monkeypatch
):
    root = tmp_path if below else Path("/a b")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.storage.project.ROOT", root)
    texts = [
        descriptions.describe_trial(1, "search", "aaaa", {"model.depth": 2}),
        descriptions.describe_fit({"model.depth": 2}, 9, "trial", "aaaa"),
        descriptions.describe_comparison("table", "aaaa"),
        descriptions.describe_model("tiny"),
        descriptions.describe_champions("tiny"),
        descriptions.describe_version(1.0, ["a", "b"], "models:/m-1"),
    ]
    lines = [line for text in texts for line in re.findall(r"^python .+", text, re.M)]
    assert len(lines) == 7
    for line in lines:
        script = Path(shlex.split(line)[1])
        assert script.parent == (Path("pipelines") if below else root / "pipelines")
        assert (ROOT / "pipelines" / script.name).is_file()


def test_an_artifact_is_fetched_from_the_store_in_which_the_run_is(tmp_path, monkeypatch):
    def lines() -> list[str]:
        return descriptions.describe_search("aaaa", 9).split("```")[1].strip().splitlines()

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    fetch = "mlflow artifacts download --run-id aaaa --artifact-path study.db --dst-path ."
    assert lines()[0] == fetch
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").touch()  # of an older store, which MLflow would take
    export = f"export MLFLOW_TRACKING_URI=sqlite:///{tmp_path}/"
    assert lines()[:2] == [f"{export}mlflow.db", fetch]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert lines()[:2] == [f"{export}other.db", fetch]
