import os
from pathlib import Path

import pytest

from pipelines.console.errors import PipelineError
from pipelines.tracking.locks import exclusive_lock


def test_one_process_at_a_time_does_the_same_work(store):
    with (
        exclusive_lock("a"),
        exclusive_lock("b"),
        pytest.raises(PipelineError, match=f"a: already running .process {os.getpid()}: .*; wait"),
        exclusive_lock("a"),
    ):
        pass
    with exclusive_lock("a"):
        pass


@pytest.mark.parametrize(
    "other",
    ["sqlite:///{}?timeout=60", "sqlite:///sub/../{}", "sqlite:///link.db", "sqlite:///sub/l/{}"],
)
def test_a_database_is_one_store_whatever_its_uri_is(tmp_path, monkeypatch, other):
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    Path("sub", "l").symlink_to(tmp_path)
    Path("link.db").symlink_to("mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    with exclusive_lock("a"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", other.format("mlflow.db"))
        with pytest.raises(PipelineError, match="a: already running"), exclusive_lock("a"):
            pass
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
        with exclusive_lock("a"):
            pass
