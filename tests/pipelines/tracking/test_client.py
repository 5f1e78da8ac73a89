import base64
import errno
import os
import re
import resource
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from unittest.mock import Mock

import optuna
import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException

from pipelines.compat.mlflow import TABLES
from pipelines.console.errors import ConfigError, PipelineError, RefusedError, StorageError
from pipelines.console.process import output_guarded
from pipelines.registry.versions import Registry
from pipelines.tracking import client as client_module
from pipelines.tracking import locks
from pipelines.tracking.client import RetryingClient, check_uri, connect
from pipelines.tracking.models import ModelStore
from pipelines.tracking.store import Store
from pipelines.tracking.uri import tracking_uri
from pipelines.tracking.writer import Writer
from tests.pipelines.stored import put_database
from tests.pipelines.tracking.histories import rows, steps_of

TIMES = {"create_run": 1, "log_batch": 2, "set_terminated": 2}
TIMES |= dict.fromkeys(("create_registered_model", "delete_tag", "log_outputs"), 1)


class Flaky:
    """The client of a store that does its work and is away before it answers."""

    def __init__(self, client) -> None:
        self.client, self.lost = client, Counter()

    def __getattr__(self, name: str):
        def call(*args, **kwargs):
            answer = getattr(self.client, name)(*args, **kwargs)
            if self.lost[name] < TIMES.get(name, 0):
                self.lost[name] += 1
                raise MlflowException("API request to http://server/x failed with exception gone")
            return answer

        return call


def test_what_was_sent_is_stored_once_though_its_answers_are_lost(store, caplog):
    flaky = Flaky(MlflowClient(tracking_uri(), tracking_uri()))
    retrying = replace(store, client=RetryingClient(flaky, tracking_uri()))
    writer = Writer(retrying)
    run = writer.open(lambda: retrying.create("trial", "k", "n", params={"a": 1})).result()
    writer.write(run, rows(1, 2))
    writer.finish(run, "FINISHED", {"dca.state": "complete"}, {"step": 2, "time": 1e9, "best": 1})
    writer.close()
    assert flaky.lost == {"create_run": 1, "log_batch": 2, "set_terminated": 2}
    (found,) = store.find("trial")
    assert found.info.run_id == run
    assert (found.info.status, found.data.params) == ("FINISHED", {"a": "1"})
    assert steps_of(store, run) == [1, 2]
    assert "MLflow: http://server: gone; trying again" in caplog.text


def test_what_was_made_or_removed_though_the_answer_was_lost_is_no_error(store):
    run = store.create("fit", "k", "n", tags={"a": "b"})
    model_id = store.client.create_logged_model(store.experiment_id, source_run_id=run).model_id
    flaky = Flaky(MlflowClient(tracking_uri(), tracking_uri()))
    client = RetryingClient(flaky, tracking_uri())
    client._retries = replace(client._retries, pause_seconds=0)
    replace(store, client=client).untag(run, "a")
    ModelStore(client)._log_output(run, model_id)
    Registry(client, "tiny").create("about it", {"c": "d"})
    assert flaky.lost == {"create_registered_model": 1, "delete_tag": 1, "log_outputs": 1}
    found = store.client.get_run(run)
    assert "a" not in found.data.tags
    assert [output.model_id for output in found.outputs.model_outputs] == [model_id]
    assert Registry(client, "tiny").own_tags() == {"c": "d"}


def test_a_refusal_is_not_retried(store):
    client = RetryingClient(store.client._client, store.client.uri)
    started = time.monotonic()
    with pytest.raises(MlflowException, match="not found"):
        client.get_run("none")
    assert time.monotonic() - started < 1


class Away:
    """The client of a store that is away; it counts the calls."""

    def __init__(self) -> None:
        self.calls = 0

    def get_run(self, run_id: str) -> None:
        self.calls += 1
        raise MlflowException("API request to http://server/x failed with exception gone")


def test_after_a_cancelled_wait_the_first_call_without_an_answer_is_the_last(store):
    away = Away()
    client = RetryingClient(away, store.client.uri)
    client.cancel_retries()
    for _ in range(2):
        with pytest.raises(
            PipelineError,
            match=r"^MLflow: http://server: gone; nothing is lost: missing rows are in the ch",
        ):
            client.get_run("r")
    assert away.calls == 1


def test_a_second_command_waits_again_after_the_first_has_given_up(store, tmp_path):
    run = store.create("fit", "k", "n")
    store.fail(run, KeyboardInterrupt())
    assert store.client._cancelled.is_set()
    second = Store.open("tiny", tmp_path / "runs")
    flaky = Flaky(second.client._client)
    again = replace(second, client=RetryingClient(flaky, second.client.uri))
    again.tag(run, {"a": "b"})
    assert flaky.lost["log_batch"] == 2
    assert second.client.get_run(run).data.tags["a"] == "b"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://127.0.0.1:9", "no tracking server answers"),
        ("sqlite:////nowhere/at/all.db", "cannot be written: there is no folder /nowhere/at"),
        ("sqlite:///", " is a folder; expected a file"),
        ("sqlite:////dev/null", "/dev/null is not a file"),
        ("sqlite:///:memory:", "a database in memory ends with the command"),
        ("sqlite://", "expected sqlite:///FILE or http"),
        ("http://", "expected sqlite:///FILE or http"),
        ("https:///x", "expected sqlite:///FILE or http"),
        ("sqlite:////tmp/x.db?mode=ro&uri=true", "mode: unknown option; expected cached_statem"),
        ("sqlite:////tmp/x.db?timeout=soon", "timeout=soon: could not convert string to float"),
        (f"sqlite:////tmp/x.db?detect_types={10**20}", "detect_types=1000000000"),
        (f"sqlite:////tmp/x.db?cached_statements={10**20}", "too large to convert to C int"),
        (f"sqlite:////tmp/x.db?cached_statements={'9' * 5000}", "cached_statements=9999999"),
        ("sqlite:////tmp/x.db?check_same_thread=2", "check_same_thread=2: String is not true"),
        ("sqlite:////tmp/x.db?timeout=1&timeout=2", "timeout: given more than once; expected once"),
        ("sqlite:////tmp/x.db?isolation_level=FOO", "isolation_level: unknown option; expected"),
        ("sqlite:////tmp/%00.db", "expected a URI in UTF-8, without a zero byte"),
        ("sqlite:////tmp/\udcff.db", "/tmp/\\udcff.db: expected a URI in UTF-8"),
        ("http://\udcff/", "MLFLOW_TRACKING_URI=http://\\udcff/: expected a URI in UTF-8"),
        ("file:///tmp/x", "expected sqlite:///FILE or http"),
        (f"sqlite:///{__file__}", "MLFLOW_TRACKING_URI"),
    ],
)
def test_a_store_that_does_not_answer_is_found_in_seconds(uri, expected, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    started = time.monotonic()
    with pytest.raises(ConfigError) as error:
        connect(tracking_uri())
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert time.monotonic() - started < 20


def test_variables_that_mlflow_cannot_read_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", "abc")
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "maybe")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    with pytest.raises(ConfigError) as error:
        connect(f"sqlite:///{tmp_path}/new.db")
    async_logging, pool_size = sorted(map(str, error.value.problems))
    assert async_logging.startswith("MLFLOW_ENABLE_ASYNC_LOGGING: ")
    assert "but got maybe" in async_logging
    assert pool_size.startswith("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE: Failed to convert 'abc'")
    assert not (tmp_path / "new.db").exists()


def test_a_pool_of_connections_that_there_is_not_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "Foo")
    put_database(tmp_path / "mlflow.db")
    with pytest.raises(ConfigError, match=r"mlflow\.db: Invalid poolclass parameter: Foo"):
        connect(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_store_that_is_away_is_waited_for_an_hour(store):
    policy = store.client._retries
    assert (policy.pause_seconds, policy.max_pause_seconds) == (0.5, 10)
    assert (policy.max_seconds, policy.max_attempts) == (3600, None)
    assert policy.random_pauses


def test_a_file_that_is_no_database_is_refused_and_an_empty_one_is_not(tmp_path):
    path = tmp_path / "a.db"
    for content, valid in (
        (b"", True),
        (b"SQLit", False),
        (b"x", False),
    ):
        path.write_bytes(content)
        if valid:
            check_uri(f"sqlite:///{path}")
        else:
            with pytest.raises(ConfigError, match="is no SQLite database"):
                check_uri(f"sqlite:///{path}")
    check_uri(f"sqlite:///{tmp_path}/new.db")
    assert not (tmp_path / "new.db").exists()


def test_a_folder_or_link_in_place_of_the_database_is_one_line_at_once(tmp_path):
    (tmp_path / "mlflow.db").mkdir()
    (tmp_path / "dangling.db").symlink_to("none/x.db")
    (tmp_path / "loop.db").symlink_to("loop.db")
    for name, expected in [
        ("mlflow.db", "is a folder; expected a file, which is made if there is none"),
        ("dangling.db", f"cannot be written: there is no folder {tmp_path}/none"),
    ]:
        with pytest.raises(ConfigError, match=expected):
            check_uri(f"sqlite:///{tmp_path / name}")
    (tmp_path / "none").mkdir()
    check_uri(f"sqlite:///{tmp_path / 'dangling.db'}")  # a link to a file that is made


@pytest.mark.parametrize("closed", ["file", "folder"])
def test_a_database_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, closed):
    path = tmp_path / "mlflow.db"
    put_database(path)
    refused = {"file": path, "folder": tmp_path}[closed]
    access = os.access
    monkeypatch.setattr(os, "access", lambda at, mode: at != refused and access(at, mode))
    with pytest.raises(ConfigError, match=r"mlflow\.db cannot be written"):
        check_uri(f"sqlite:///{path}")


def test_the_database_of_another_program_is_refused_and_nothing_is_written(tmp_path):
    optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db")
    with closing(sqlite3.connect(tmp_path / "other.db")) as database:
        database.execute("create table experiments (experiment_id int, name text)")
    for name, expected in [
        ("study.db", "with the tables studies, study_directions, study_system_attributes"),
        ("other.db", "with the tables experiments"),
    ]:
        before = (tmp_path / name).read_bytes()
        with pytest.raises(ConfigError) as error:
            connect(f"sqlite:///{tmp_path / name}")
        message = str(error.value)
        assert message.endswith(f"{name} is the database of another program, {expected}")
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("table", sorted(TABLES - {"experiments"}))
def test_a_database_that_lacks_a_table_is_one_line(tmp_path, table):
    path = tmp_path / "mlflow.db"
    put_database(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"drop table {table}")
    with pytest.raises(
        ConfigError, match=f"is no whole database of MLflow: it has no table {table}$"
    ):
        check_uri(f"sqlite:///{path}")


OTHERS = {
    "drop table webhooks": (
        "v3.2.0.a",
        r"has the tables of a later MLflow than \d[\d.]+, or of another program: "
        r"their version is v3\.2\.0\.a",
    ),
    "drop table runs": ("abcdef", "is no whole database of MLflow: it has no table runs"),
    "delete from alembic_version": (
        "none",
        "is no whole database of MLflow: its version is not in alembic_version",
    ),
    "drop table alembic_version": (
        None,
        "is no whole database of MLflow: its version is not in alembic_version",
    ),
}


@pytest.mark.parametrize("change", OTHERS)
def test_a_database_of_a_version_that_mlflow_does_not_know_is_refused(tmp_path, change):
    version, expected = OTHERS[change]
    path = tmp_path / "mlflow.db"
    put_database(path)
    with closing(sqlite3.connect(path)) as database, database:
        if version:
            database.execute("update alembic_version set version_num = ?", [version])
        database.execute(change)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=rf"mlflow\.db {expected}$"):
        connect(f"sqlite:///{path}")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("insert into alembic_version values ('abcdef')", "whose version is abcdef"),
        ("create view seen as select 1", "with the tables seen"),
    ],
)
def test_a_database_without_tables_may_be_another_programs(tmp_path, statement, expected):
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("create table alembic_version (version_num varchar(32))")
        check_uri(f"sqlite:///{path}")  # as an empty file may be
        database.execute(statement)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=rf"is the database of another program, {expected}$"):
        connect(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_a_database_that_is_locked_is_waited_for_later(tmp_path):
    path = tmp_path / "mlflow.db"
    put_database(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("begin exclusive")
        check_uri(f"sqlite:///{path}?timeout=0.1")


def test_a_wait_for_the_lock_of_a_database_is_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "SILENT_SECONDS", 0.01)
    path, waiting = tmp_path / "mlflow.db", threading.Event()
    put_database(path)
    monkeypatch.setattr(locks.logging.Logger, "warning", lambda *_: waiting.set())
    with closing(sqlite3.connect(path)) as database:
        database.execute("begin exclusive")
        check_uri(f"sqlite:///{path}?timeout=0.1")
        assert waiting.is_set()
        retrying = RetryingClient(SimpleNamespace(get_run=waiting.wait), f"sqlite:///{path}")
        for kind in ("exclusive", "immediate"):
            waiting.clear()
            database.execute("rollback")
            database.execute(f"begin {kind}")
            assert retrying.get_run(5)
    waiting.clear()
    assert not retrying.get_run(0.05)  # which is free now


def test_a_wait_for_an_answer_of_a_server_is_a_line_again_and_again(monkeypatch):
    """A server that accepts connections and is stopped, which MLflow waits for two minutes."""
    monkeypatch.setattr(locks, "SERVER_SECONDS", 0.01)
    monkeypatch.setattr(locks, "SERVER_LOG_SECONDS", 0.01)
    told, third = [], threading.Event()

    def warning(_, text: str, *values: object) -> None:
        told.append(text % values)
        if len(told) == 3:
            third.set()

    monkeypatch.setattr(locks.logging.Logger, "warning", warning)
    client = SimpleNamespace(get_run=third.wait)
    assert RetryingClient(client, "http://ann:CANARY@host:5000").get_run(5)
    assert len(told) >= 3
    assert re.fullmatch(r"waiting for http://\*\*\*@host:5000 \(for \d+ s now\)", told[0])


@pytest.mark.parametrize(("silent_seconds", "is_line"), [(0, False), (9, True)])
def test_where_nothing_else_was_written_a_wait_for_a_server_is_a_line_sooner(
    monkeypatch, silent_seconds, is_line
):
    monkeypatch.setattr(locks, "SERVER_SECONDS", 0.01)
    monkeypatch.setattr(locks, "SERVER_LOG_SECONDS", 9)
    shown = threading.Event()
    monkeypatch.setattr(locks.logging.Logger, "warning", lambda *_: shown.set())
    with output_guarded() as streams:
        for stream in streams:
            stream.since -= silent_seconds
        wait = 5 if is_line else 0.1
        client = SimpleNamespace(get_run=shown.wait)
        assert RetryingClient(client, "http://host:5000").get_run(wait) == is_line


@pytest.mark.slow
def test_a_database_that_cannot_grow_is_one_line(tmp_path):
    client = connect(put_database(tmp_path / "mlflow.db"))
    run = client.create_run("0").info.run_id
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "mlflow.db").stat().st_size
    calls = [
        lambda: client.log_batch(run, tags=[RunTag(f"tag{n}", 4000 * "x") for n in range(50)]),
        lambda: [client.create_run("0", tags={"a": 5000 * "x"}) for _ in range(9)],
    ]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        for call in calls:
            with pytest.raises(StorageError, match=r"^MLFLOW_TRACKING_URI=.*mlflow.db: d[^\n]*$"):
                call()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_database_that_is_deleted_while_it_is_used_is_named_as_that(tmp_path):
    path = tmp_path / "mlflow.db"
    client = connect(put_database(path))
    run = client.create_run("0").info.run_id
    path.unlink()
    with pytest.raises(StorageError, match=f"^MLFLOW_TRACKING_URI=.*: {path} has been deleted$"):
        client.log_batch(run, tags=[RunTag("a", "b")])


@pytest.mark.parametrize("kind", ["run", "experiment"])
def test_what_is_deleted_while_it_is_used_is_one_line(store, kind):
    run = store.client.create_run(store.experiment_id).info.run_id
    if kind == "run":
        store.client.delete_run(run)
    else:
        store.client.delete_experiment(store.experiment_id)
    message = f"^run {run} was deleted in MLflow meanwhile; run the same command again$"
    with pytest.raises(StorageError, match=message):
        store.client.log_batch(run, tags=[RunTag("a", "b")])


def test_a_file_of_an_artifact_that_cannot_be_written_is_named_and_not_the_database(tmp_path):
    client = connect(put_database(tmp_path / "mlflow.db"))
    experiment = client.create_experiment("a", artifact_location=str(tmp_path / "artifacts"))
    run = client.create_run(experiment).info.run_id
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    source = tmp_path / "source.txt"
    source.write_bytes(bytes(2 * (tmp_path / "mlflow.db").stat().st_size))
    resource.setrlimit(resource.RLIMIT_FSIZE, (source.stat().st_size // 2, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"^a file of the artifacts: File too large$"):
            client.log_artifact(run, str(source))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    copied = OSError(errno.ENOSPC, "No space left on device", "/from/a", None, "/to/a")
    with pytest.raises(StorageError, match=r"^/to/a: No space left on device$"):
        client.retry(Mock(side_effect=copied))


@pytest.mark.slow
def test_a_full_folder_of_temporary_files_is_named_and_leaves_no_database(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # a new database has 600,000
    try:
        with pytest.raises(StorageError, match=r"^/.*, in TMPDIR: d[^\n]*$"):
            connect(f"sqlite:///{tmp_path}/mlflow.db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


class Guarded(BaseHTTPRequestHandler):
    """A tracking server behind a proxy: it takes one user and one token."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        known = [f"Basic {base64.b64encode(b'ana:correct horse').decode()}", "Bearer the-token"]
        path = self.path.partition("?")[0]
        if path.startswith("/moved"):
            self.answer(302, "", Location="https://login.example/?next=x")
        elif path.startswith("/page"):
            self.answer(200, "<html>hello</html>", **{"Content-Type": "text/html"})
        elif path.startswith("/starting"):
            self.answer(503, "wait")
        elif not path.startswith("/api/2.0/mlflow/experiments/search"):
            self.answer(404, "not here")
        elif self.headers.get("Authorization") in known:
            self.answer(200, '{"experiments": []}')
        else:
            self.answer(401, "<html>who?</html>", **{"Content-Type": "text/html"})

    def do_GET(self) -> None:
        self.answer(400, '{"error_code": "INVALID_PARAMETER_VALUE"}')

    def answer(self, status: int, text: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def guarded(monkeypatch) -> Iterator[str]:
    """The address of that server; the user has no credentials in any file."""
    monkeypatch.setenv("HOME", "/nowhere")
    with ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


USER, PASSWORD, TOKEN = (f"MLFLOW_TRACKING_{name}" for name in ("USERNAME", "PASSWORD", "TOKEN"))


@pytest.mark.server
@pytest.mark.parametrize(
    "given", [{USER: "ana", PASSWORD: "correct horse"}, {TOKEN: "the-token"}, {}]
)
def test_a_guarded_server_is_asked_with_the_users_credentials(guarded, monkeypatch, given):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    uri = guarded if given else guarded.replace("://", "://ana:correct%20horse@")
    assert connect(uri).search_experiments(max_results=1) == []


@pytest.mark.server
@pytest.mark.parametrize(
    ("path", "given", "expected"),
    [
        ("", {}, "the server refuses a request without a user (HTTP 401 Unauthorized); set MLFL"),
        ("", {USER: "ana", PASSWORD: "wrong horse"}, "refuses the user ana (HTTP 401 Unauthori"),
        ("", {TOKEN: "a-wrong-token"}, "the server refuses the token (HTTP 401"),
        ("", {USER: "ana"}, "the server refuses a request without a user (HTTP 401"),
        ("/none", {}, "what answers there is no MLflow server (HTTP 404 Not Found)"),
        ("/page", {}, "what answers there is no MLflow server (HTTP 200 OK)"),
        ("/moved", {}, "the server redirects to https://login.example/?next=x; expected the addr"),
        ("/starting", {}, "no tracking server answers (HTTP 503 Service Unavailable)"),
    ],
)
def test_what_a_server_answers_is_told_without_the_password(
    guarded, monkeypatch, path, given, expected
):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as error:
        check_uri(guarded + path)
    message = str(error.value)
    assert expected in message
    assert "\n" not in message
    assert "horse" not in message
    assert "a-wrong-token" not in message


@pytest.mark.server
@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (403, "Permission denied", "(HTTP 403: Permission denied); that user needs a permission"),
        (403, '{"error_code": "PERMISSION_DENIED", "message": "no"}', "HTTP 403: PERMISSION_DENI"),
        (401, "<html>\n</html>", " (HTTP 401); set MLFLOW_TRACKING_USERNAME"),
        (405, "", "(HTTP 405: no reason); set"),
        (414, "too long", "(HTTP 414: too long); set"),
    ],
)
def test_a_server_that_lets_read_and_refuses_to_write_is_one_line(
    guarded, monkeypatch, status, answer, expected
):
    monkeypatch.setenv(USER, "ana")
    monkeypatch.setenv(PASSWORD, "correct horse")
    client = connect(guarded)
    monkeypatch.setattr(Guarded, "do_POST", lambda self: self.answer(status, answer))
    calls = {
        "create run 7": lambda: client.create_run("7"),
        "log batch 1": lambda: client.log_batch("1", tags=[RunTag("a", "b")]),
    }
    for request, call in calls.items():
        with pytest.raises(RefusedError) as error:
            call()
        assert f"the server refuses the user ana to {request} (HTTP" in str(error.value)
        assert expected in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("status", [401, 403, 413, 503])
def test_a_refusal_of_the_server_of_artifacts_is_one_line(store, status):
    """MLflow raises what requests raises."""
    text = f"{status} Client Error: FORBIDDEN for url: http://host/api. Response text: no\nno"
    answer = requests.Response()
    answer.status_code, answer._content = status, b"no"
    refused = status in (401, 403)
    expected = rf"the server refuses [^(]* \(HTTP {status}: no\); set" if refused else text[:40]

    def refuse() -> None:
        raise requests.HTTPError(text, response=answer)

    with pytest.raises(StorageError, match=f"^MLFLOW_TRACKING_URI=.*: {expected}") as error:
        store.client.retry(refuse)
    assert isinstance(error.value, RefusedError) == refused
    assert "\n" not in str(error.value)
    answer.status_code = 404
    with pytest.raises(requests.HTTPError):
        store.client.retry(refuse)


@pytest.mark.server
def test_a_server_without_a_trusted_certificate_is_told_as_such(guarded):
    with pytest.raises(ConfigError, match="no secure connection: "):
        check_uri(guarded.replace("http", "https"))


@pytest.mark.server
@pytest.mark.parametrize(
    "text",
    [
        *('{"status": "ok"}', '{"experiments": 5}', "[]", "{}", '{"experiments": []}'),
        *('{"experiments": [{"name": "a"}]}', '{"experiments": ["a"]}'),
    ],
)
def test_a_server_with_another_json_is_no_tracking_server(guarded, monkeypatch, text):
    answer = Guarded.answer
    monkeypatch.setattr(Guarded, "answer", lambda self, *_, **__: answer(self, 200, text))
    with pytest.raises(ConfigError, match="what answers there is no MLflow server"):
        connect(guarded)


@pytest.mark.server
@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_server_that_shows_no_experiment_but_refuses_a_request_is_one(
    guarded, monkeypatch, status
):
    monkeypatch.setattr(Guarded, "do_POST", lambda self: self.answer(200, "{}"))
    text = '{"error_code": "RESOURCE_DOES_NOT_EXIST"}' if status == 404 else "no"
    monkeypatch.setattr(Guarded, "do_GET", lambda self: self.answer(status, text))
    check_uri(guarded)


@pytest.mark.server
def test_a_server_that_answers_byte_by_byte_is_not_waited_for(guarded, monkeypatch):
    def drip(self, status: int, text: str, **_: str) -> None:
        self.send_response(status)
        self.end_headers()
        with suppress(OSError):
            for _ in range(100):
                self.wfile.write(b" ")
                time.sleep(0.05)

    monkeypatch.setattr(Guarded, "answer", drip)
    monkeypatch.setattr(client_module, "ANSWER_SECONDS", 0.5)
    with pytest.raises(ConfigError, match=r"answers \(no whole answer in 0\.5 s\)"):
        connect(guarded)


@pytest.mark.server
def test_a_variable_that_mlflow_cannot_use_is_one_line(guarded, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "perhaps")
    with pytest.raises(ConfigError, match=r"MLFLOW_TRACKING_INSECURE_TLS.*perhaps"):
        connect(guarded)
    monkeypatch.delenv("MLFLOW_TRACKING_INSECURE_TLS")
    monkeypatch.setenv("MLFLOW_TRACKING_AWS_SIGV4", "true")
    with pytest.raises(ConfigError, match="No module named"):
        connect(guarded)
