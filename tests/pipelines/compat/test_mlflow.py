"""What pipelines.compat.mlflow relies on is still what MLflow does."""

import http.server
import logging
import re
import sqlite3
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient, environment_variables
from mlflow.entities import Param, RunStatus, RunTag, SourceType
from mlflow.exceptions import MlflowException
from mlflow.models import model as models
from mlflow.store.artifact.models_artifact_repo import REGISTERED_MODEL_META_FILE_NAME
from mlflow.store.db import utils as database
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from mlflow.telemetry import utils as telemetry
from mlflow.tracking._tracking_service.utils import _get_default_tracking_uri
from mlflow.utils import mlflow_tags
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError

from pipelines.compat import mlflow as compat
from pipelines.compat import mlflow_errors as errors
from pipelines.registry.packaged_model import PackagedModel

TAGS = {
    "NOTE_TAG": "MLFLOW_RUN_NOTE",
    "PARENT_RUN_TAG": "MLFLOW_PARENT_RUN_ID",
    "USER_TAG": "MLFLOW_USER",
    "SOURCE_NAME_TAG": "MLFLOW_SOURCE_NAME",
    "SOURCE_TYPE_TAG": "MLFLOW_SOURCE_TYPE",
    "COMMIT_TAG": "MLFLOW_GIT_COMMIT",
    "DATASET_CONTEXT_TAG": "MLFLOW_DATASET_CONTEXT",
    "MODEL_VERSIONS_TAG": "MLFLOW_MODEL_VERSIONS",
}
QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}


@pytest.fixture
def client(tracking: str) -> MlflowClient:
    """MLflow's own client of an empty store."""
    return MlflowClient(tracking, tracking)


@pytest.fixture
def run(client: MlflowClient) -> str:
    return client.create_run(client.create_experiment("e")).info.run_id


@pytest.fixture(scope="module")
def user_interface() -> str:
    """The scripts of MLflow's pages."""
    files = (Path(mlflow.__file__).parent / "server/js/build/static/js").glob("*.js")
    return "\n".join(file.read_text() for file in files)


@contextmanager
def statements(rewrite) -> Iterator[None]:
    """Let a function of connection and statement replace what SQLAlchemy executes."""

    def listen(connection, cursor, statement, parameters, context, many):
        return rewrite(connection.connection.dbapi_connection, statement), parameters

    event.listen(Engine, "before_cursor_execute", listen, retval=True)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", listen)


def error_of(work, *args, **kwargs) -> Exception:
    with pytest.raises((MlflowException, IntegrityError)) as raised:
        work(*args, **kwargs)
    return raised.value


def test_tags_are_those_of_mlflow():
    assert {name: getattr(compat, name) for name in TAGS} == {
        name: getattr(mlflow_tags, theirs) for name, theirs in TAGS.items()
    }
    assert SourceType.to_string(SourceType.LOCAL) == compat.LOCAL_SOURCE


def test_statuses_are_those_of_mlflow(client, run):
    ours = {compat.RUNNING, compat.FINISHED, compat.FAILED, compat.KILLED}
    assert ours <= {RunStatus.to_string(status) for status in RunStatus.all_status()}
    assert client.get_run(run).info.status == compat.RUNNING
    client.set_terminated(run, compat.KILLED)
    assert client.get_run(run).info.status == compat.KILLED


def test_the_pages_have_the_addresses_and_the_kind_of_experiment(user_interface):
    for address in (
        compat.run_page(":experimentId", ":runUuid"),
        compat.model_page(":modelName"),
    ):
        assert f'"{address.removeprefix("#")}"' in user_interface
    ((key, value),) = compat.EXPERIMENT_KIND.items()
    assert f'"{key}"' in user_interface
    assert f'"{value}"' in user_interface
    for tag in (compat.NOTE_TAG, compat.PARENT_RUN_TAG, compat.DATASET_CONTEXT_TAG):
        assert tag in user_interface


def test_the_variable_turns_the_statistics_of_mlflows_use_off(monkeypatch):
    ((name, value),) = compat.TELEMETRY.items()
    assert environment_variables.MLFLOW_DISABLE_TELEMETRY.name == name
    monkeypatch.setenv(name, value)
    assert telemetry.is_telemetry_disabled()


def test_without_a_uri_mlflow_takes_an_older_store_before_the_database(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (compat.takes_mlruns(), _get_default_tracking_uri()) == (False, "sqlite:///mlflow.db")
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    assert not compat.takes_mlruns()  # as a database has made it for artifacts
    (tmp_path / "mlruns" / "0" / "meta.yaml").touch()
    assert (compat.takes_mlruns(), _get_default_tracking_uri()) == (True, "./mlruns")


@pytest.mark.slow
def test_tables_that_are_made_at_once_are_those_that_mlflow_makes(tmp_path):
    ours, theirs = tmp_path / "o%41?b.db", tmp_path / "theirs.db"
    compat.make_tables(ours)
    MlflowClient(f"sqlite:///{theirs}", f"sqlite:///{theirs}")
    columns = (
        "select m.type, m.name, c.* from sqlite_master m left join pragma_table_info(m.name) c "
        "union all select 'version', version_num, 0, 0, 0, 0, 0, 0 from alembic_version"
    )
    found = []
    for path in (ours, theirs):
        with closing(sqlite3.connect(path)) as made:
            found.append(sorted(map(str, made.execute(columns).fetchall())))
    assert found[0] == found[1]
    assert len(found[0]) > 200


def test_a_longer_tag_is_cut(client, run):
    for extra in (0, 1):
        client.log_batch(run, tags=[RunTag("t", (compat.MAX_TAG_CHARACTERS + extra) * "x")])
        assert len(client.get_run(run).data.tags["t"]) == compat.MAX_TAG_CHARACTERS


def test_a_longer_parameter_is_cut(client, run):
    for extra in (0, 1):
        param = Param(f"p{extra}", (compat.MAX_PARAM_CHARACTERS + extra) * "x")
        client.log_batch(run, params=[param])
        stored = client.get_run(run).data.params[f"p{extra}"]
        assert len(stored) == compat.MAX_PARAM_CHARACTERS


def test_the_client_splits_parameters_over_requests(client, run):
    """A request takes 100; the store relies on the client for that."""
    client.log_batch(run, params=[Param(f"p{i}", "1") for i in range(250)])
    assert len(client.get_run(run).data.params) == 250


def test_ids_have_their_patterns(client, run):
    assert re.fullmatch(compat.RUN_ID, run)
    model = client.create_logged_model(client.get_run(run).info.experiment_id)
    assert re.fullmatch(compat.MODEL_ID, model.model_id)


def test_a_store_names_what_is_missing_exists_or_is_invalid(client):
    client.create_registered_model("a")
    assert error_of(client.create_registered_model, "a").error_code == compat.EXISTS
    assert error_of(client.get_registered_model, "b").error_code == compat.MISSING
    assert error_of(client.get_model_version, "a", "1").error_code == compat.MISSING
    assert error_of(client.get_registered_model, "").error_code == compat.INVALID


def test_a_locked_database_is_transient_and_a_full_disk_is_not(client, run, tracking):
    file = tracking.removeprefix("sqlite:///")
    with closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with statements(lambda _, sql: sql.replace("busy_timeout = 20000", "busy_timeout = 1")):
            error = error_of(client.log_batch, run, tags=[RunTag("a", "b")])
    assert errors.is_transient(error)
    assert not errors.is_write_conflict(error)
    with closing(sqlite3.connect(file)) as other:
        (pages,) = other.execute("PRAGMA page_count").fetchone()

    def full(connection: sqlite3.Connection, sql: str) -> str:
        connection.execute(f"PRAGMA max_page_count = {pages}").close()
        return sql

    params = [Param(f"p{i}", 5000 * "x") for i in range(100)]
    with statements(full):
        error = error_of(client.log_batch, run, params=params)
    assert "disk is full" in str(error)
    assert not errors.is_transient(error)


def test_a_server_that_does_not_answer_is_transient(monkeypatch):
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    uri = "http://127.0.0.1:9"
    error = error_of(MlflowClient(uri, uri).get_run, 32 * "0")
    assert errors.is_transient(error)
    reason = "Failed to establish a new connection: Connection refused"
    assert errors.unanswered(error) == (uri, reason)


@pytest.mark.server
@pytest.mark.parametrize(
    ("status", "transient"),
    [(429, True), (503, True), (504, True), (400, False), (403, False), (404, False), (500, True)],
)
def test_an_overloaded_server_is_transient_and_one_that_refuses_is_not(
    monkeypatch, status, transient
):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def log_message(self, *args) -> None:
            pass

    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            uri = f"http://127.0.0.1:{server.server_address[1]}"
            error = error_of(MlflowClient(uri, uri).get_run, 32 * "0")
        finally:
            server.shutdown()
            thread.join()
    assert errors.is_transient(error) is transient
    repeated = status in (429, 500, 503, 504)
    assert errors.unanswered(error) == ((uri, f"HTTP {status}") if repeated else None)


def test_two_writers_of_one_row_are_a_conflict(client, run, tracking):
    client.create_registered_model("a")
    client.create_model_version("a", "s", run)
    columns = "workspace, name, version, key, value"

    def late(_: sqlite3.Connection, sql: str) -> str:
        if sql.startswith("INSERT INTO model_version_tags"):
            with closing(sqlite3.connect(tracking.removeprefix("sqlite:///"))) as other, other:
                row = ("default", "a", 1, "t", "theirs")
                other.execute(
                    f"INSERT INTO model_version_tags ({columns}) VALUES (?, ?, ?, ?, ?)", row
                )
        return sql

    with statements(late):
        error = error_of(client.set_model_version_tag, "a", "1", "t", "ours")
    assert errors.is_write_conflict(error)
    assert not errors.is_transient(error)


def test_numbers_that_others_have_taken_are_a_conflict(client, run, monkeypatch):
    client.create_registered_model("a")
    monkeypatch.setattr(SqlAlchemyStore, "CREATE_MODEL_VERSION_RETRIES", 0)
    error = error_of(client.create_model_version, "a", "s", run)
    assert errors.is_write_conflict(error)


def test_postgresql_s_conflict_is_known_by_the_name_of_its_error():
    class UniqueViolation(Exception):
        """As psycopg2 calls it."""

    error = IntegrityError("INSERT", {}, UniqueViolation("duplicate key"))
    assert "UniqueViolation" in str(error)
    assert errors.is_write_conflict(MlflowException(str(error)))
    assert not errors.is_write_conflict(MlflowException("not found"))


def test_settings_of_the_users_own_programs_are_left_out(monkeypatch):
    theirs = {name: getattr(environment_variables, name) for name in compat.LEFT_OUT}
    for name in theirs:
        monkeypatch.delenv(name, raising=False)
    defaults = {name: variable.get() for name, variable in theirs.items()}
    for name in theirs:
        monkeypatch.setenv(name, "true" if defaults[name] is False else "false")
    changed = {name: variable.get() for name, variable in theirs.items()}
    assert all(changed[name] != defaults[name] for name in theirs)
    compat.set_environment()
    assert {name: variable.get() for name, variable in theirs.items()} == defaults


def test_the_environment_is_what_mlflow_reads(monkeypatch):
    theirs = {name: getattr(environment_variables, name) for name in compat.ENVIRONMENT}
    for name in (*compat.ENVIRONMENT, *compat.DEFAULT_ENVIRONMENT):
        monkeypatch.delenv(name, raising=False)
    before = {name: variable.get() for name, variable in theirs.items()}
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    compat.set_environment()
    after = {name: variable.get() for name, variable in theirs.items()}
    assert after == {name: value == "true" for name, value in compat.ENVIRONMENT.items()}
    assert all(before[name] is not after[name] for name in theirs)  # needed: not the defaults
    retries = environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES
    assert retries.get() == 3  # the user's
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    assert retries.get() > 0
    compat.set_environment()
    assert retries.get() == 0


def test_the_logger_that_is_silenced_is_the_one_that_prints():
    names = [utils._logger.name for utils in (database, models)]
    assert all(name.startswith(f"{compat.LOGGER}.") for name in names)
    assert logging.getLogger(compat.LOGGER).handlers


CODE = """
import mlflow
from mlflow.pyfunc import PythonModel

class Echo(PythonModel):
    _skip_type_hint_validation = True

    def predict(self, context, model_input, params=None):
        return model_input

mlflow.models.set_model(Echo())
"""


def test_a_model_from_code_has_its_file_and_its_sources_where_they_are_looked_for(tmp_path):
    (tmp_path / "echo.py").write_text(CODE)
    (tmp_path / "sources").mkdir()
    mlflow.pyfunc.save_model(
        str(tmp_path / "model"),
        python_model=str(tmp_path / "echo.py"),
        code_paths=[str(tmp_path / "sources")],
        pip_requirements=[],
    )
    assert (tmp_path / "model" / compat.MODEL_FILE).is_file()
    assert REGISTERED_MODEL_META_FILE_NAME == compat.REGISTERED_FILE
    assert (tmp_path / "model" / compat.SOURCES / "sources").is_dir()
    assert (tmp_path / "model" / "echo.py").is_file()


def test_without_type_hints_only_the_attribute_keeps_mlflow_from_warning():
    def warned(attributes: dict) -> list[str]:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            type(
                "Model",
                (mlflow.pyfunc.PythonModel,),
                {"predict": lambda self, context, model_input, params=None: None, **attributes},
            )
        return [str(warning.message) for warning in found]

    assert any("type hint" in text for text in warned({"__module__": __name__}))
    assert warned({"__module__": __name__, compat.SKIP_TYPE_HINTS: True}) == []
    assert getattr(PackagedModel, compat.SKIP_TYPE_HINTS) is True
