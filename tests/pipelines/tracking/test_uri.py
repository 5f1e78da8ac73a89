from pathlib import Path

from pipelines.tracking.uri import database_file, shown_tracking_uri, tracking_uri


def test_without_a_setting_the_database_lies_where_mlflow_ui_looks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert tracking_uri() == f"sqlite:///{tmp_path}/other.db"


def test_a_server_has_no_database_file():
    assert database_file("http://host:5000") is None
    assert database_file("sqlite:////folder/file.db") == Path("/folder/file.db")


def test_the_password_of_a_server_is_for_connecting_only(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:CANARY@host:5000")
    assert tracking_uri() == "http://user:CANARY@host:5000"
    assert shown_tracking_uri() == "http://***@host:5000"
