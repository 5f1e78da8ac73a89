import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import make_url

from pipelines.console.errors import ConfigError
from pipelines.console.secrets import redact
from pipelines.registry.package import fetch_model
from pipelines.search.study import save_study
from pipelines.tracking.client import connect, connect_existing
from pipelines.tracking.models import model_id_of
from pipelines.tracking.store import Store
from pipelines.tracking.uri import (
    database_file,
    database_uri,
    export_lines,
    shown_tracking_uri,
    tracking_uri,
)
from tests.pipelines.packages import log_untrained
from tests.pipelines.stored import put_database

NAMES = ["dir%20x", "a b?c#d", "q'uo\"te:a :b", "é ü %%", "x&y=z;\n+\\"]
"""Of folders, each with characters that mean something in a URI, in SQL or in a shell."""


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
    assert export_lines() == []  # pasted, what is shown would replace the password
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert export_lines() == ["export MLFLOW_TRACKING_URI=http://host:5000"]


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("http://host:5000/#/experiments/1", "http://host:5000/"),
        ("https://host/path?x=1", "https://host/path"),
        ("HTTP://HOST:5000", "http://HOST:5000"),
        (" http://host:5000 ", "http://host:5000"),
        ("http://ann:CANARY@host/#/models", "http://***@host/"),
    ],
)
def test_of_what_a_browser_shows_the_address_of_the_server_is_wanted(uri, address, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError) as error:
        tracking_uri()
    message = redact(str(error.value))
    assert message.startswith("MLFLOW_TRACKING_URI=")
    assert message.endswith(f": expected only the address of a server; did you mean {address}?")


@pytest.mark.parametrize("sign", ["#", "?"])
def test_of_a_password_with_such_a_sign_nothing_is_shown(sign, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://ann:CANARY{sign}CANARY@host")
    with pytest.raises(ConfigError) as error:
        tracking_uri()
    assert redact(str(error.value)) == (
        "MLFLOW_TRACKING_URI=https://***@host: expected # and ? of a password as %23 and %3F"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_database_is_that_of_the_current_folder_whatever_its_name_is(name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    for given in ("", "sqlite:///mlflow.db", "sqlite:///mlflow.db?timeout=60"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
        assert database_file(tracking_uri()) == tmp_path / name / "mlflow.db"
        assert make_url(tracking_uri()).database == str(tmp_path / name / "mlflow.db")
        assert tracking_uri().partition("?")[2] == given.partition("?")[2]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri())
        assert database_file(tracking_uri()) == tmp_path / name / "mlflow.db"


def test_the_path_in_a_uri_is_decoded_as_mlflow_decodes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/dir%20x/a.db?timeout=1")
    assert database_file(tracking_uri()) == tmp_path / "dir x" / "a.db"


@pytest.mark.extended
@pytest.mark.parametrize("name", NAMES)
def test_runs_models_and_studies_stay_in_a_folder_of_any_name(
    name, tmp_path, monkeypatch, experiment
):
    here = tmp_path / "here" / name
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    put_database(here / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db?timeout=60")
    store = Store.open("tiny", here / "runs")
    run, uri = log_untrained(store, experiment)
    store.log_text(run, "text", "folder/a b.txt")
    again = Store(connect_existing(), store.experiment_id)
    assert again.read_text(run, "folder/a b.txt") == "text"
    assert (fetch_model(again.models, model_id_of(uri), tmp_path / "copy") / "MLmodel").is_file()
    save_study(here / "study.db", experiment.search_task(), [])
    assert sorted(path.name for path in here.iterdir()) == ["mlflow.db", "runs", "study.db"]
    assert [path.name for path in (tmp_path / "here").iterdir()] == [name]


def test_the_default_experiment_is_made_in_a_folder_with_a_quote(tmp_path, monkeypatch):
    """MLflow writes the path of ./mlruns into SQL as it is."""
    monkeypatch.chdir(tmp_path)
    put_database(tmp_path / "mlflow.db")
    with sqlite3.connect("mlflow.db") as database:
        database.execute("delete from experiments")
    (tmp_path / "it's").mkdir()
    monkeypatch.chdir(tmp_path / "it's")
    client = connect(database_uri(tmp_path / "mlflow.db"))
    (default,) = client.search_experiments()
    assert default.artifact_location == (tmp_path / "it's" / "mlruns" / "0").as_uri()
