import os
import tempfile
from pathlib import Path

import pytest

from pipelines.console.errors import PipelineError
from pipelines.tracking.locks import _file, exclusive_lock


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


@pytest.mark.parametrize(
    ("uri", "same", "others"),
    [
        (
            "http://h:5000",
            ["http://h:5000/", "HTTP://H:5000//", "http://ann:secret@h:5000", "http://h:5000?a=b"],
            ["http://h:5001", "https://h:5000", "http://h:5000/a", "http://i:5000", "http://h"],
        ),
        ("http://localhost", ["http://127.0.0.1:80", "http://[::1]/"], ["http://127.0.0.2"]),
        ("https://h/mlflow", ["https://h:443/mlflow/"], ["https://h"]),
        ("postgresql://a@h/x", ["postgresql://b:c@h/x"], ["postgresql://a@h/y"]),
        ("postgresql:///x?host=/a", [], ["postgresql:///x?host=/b"]),
        ("http://[h", [], ["http://h:x"]),
    ],
)
def test_a_server_is_one_store_however_its_address_is_spelled(uri, same, others):
    assert {_file(one, "a") for one in same} <= {_file(uri, "a")}
    assert len({_file(one, "a") for one in [uri, *others]}) == 1 + len(others)


def test_a_command_of_cron_finds_the_locks_of_one_in_a_login(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with exclusive_lock("a"):
        (lock,) = tmp_path.iterdir()  # beside the database
        for name in ("XDG_RUNTIME_DIR", "TMPDIR"):
            monkeypatch.setenv(name, str(tmp_path / "other"))
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "other"))
        with pytest.raises(PipelineError, match="a: already running"), exclusive_lock("a"):
            pass
    assert not lock.exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none/mlflow.db")
    with exclusive_lock("a"):  # refused later, with the reason
        assert list(tmp_path.iterdir()) == []
