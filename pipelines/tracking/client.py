"""A connection to the tracking store, whose calls are repeated while it is locked or unavailable.

Used by the store, the model store and the registry. A command opens a connection of its own, so
that cancelled retries of one command do not affect the next one in the same process.
"""

import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from sqlalchemy import URL, NullPool, create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from pipelines.compat.mlflow import (
    IMPATIENT,
    INVALID,
    LOGGER,
    MISSING,
    decode_database_folders,
    encoded_artifact_root,
    ignore_warnings,
    make_tables,
    schema_problem,
    set_environment,
    skip_prompt_checks,
    unreadable_variables,
)
from pipelines.compat.mlflow_artifacts import copy_artifacts, failed_copy, read_artifact, unreadable
from pipelines.compat.mlflow_errors import (
    deleted,
    failed_file,
    is_locked,
    is_transient,
    refused,
    store_errors,
    unanswered,
)
from pipelines.compat.mlflow_server import ANONYMOUS, identity, probe
from pipelines.console.errors import (
    DISK_ERRORS,
    ConfigError,
    DamagedError,
    PipelineError,
    Problem,
    RefusedError,
    StorageError,
)
from pipelines.console.retries import RetryPolicy, within
from pipelines.console.text import first_line, one_line
from pipelines.storage.files import move_into_place, require_room
from pipelines.storage.scratch import scratch_folder
from pipelines.tracking.locks import logging_waits, store_lock
from pipelines.tracking.uri import MEMORY, database_file, file_problem, local_path, tracking_uri

PROBE_SECONDS, ANSWER_SECONDS = 10, 18
"""Without a byte of a server's answer, and for the whole of it."""
MAX_UNAVAILABLE_SECONDS = 3600
"""How long a store may be unavailable before a command fails; missing rows are in checkpoints."""
MAX_PAUSE_SECONDS = 10
OPTIONS = {"timeout", "check_same_thread", "cached_statements", "detect_types"}
"""Of a SQLite URI, behind its `?`; SQLAlchemy passes them to Python's driver, and no others."""
REFUSED = (SQLAlchemyError, ArithmeticError, TypeError, ValueError)
"""How SQLAlchemy and the driver refuse a file or the value of an option."""
CREDENTIALS = "set MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN"

T = TypeVar("T")


class RetryingClient:
    """An MLflow client that repeats its calls while the store is locked or unavailable.

    Methods that create something are not repeated: the caller checks first whether they did.
    """

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self._client, self.uri = client, uri
        self._artifact_uris: dict[str, str] = {}
        self._cancelled, self._gone = threading.Event(), ""
        self._retries = RetryPolicy(
            is_transient,
            pause_seconds=0.5,
            max_pause_seconds=MAX_PAUSE_SECONDS,
            max_seconds=MAX_UNAVAILABLE_SECONDS,
            cancelled=self._cancelled,
            name="MLflow",
            describe=_reason,
        )

    def __getattr__(self, name: str) -> Any:
        method = logging_waits(self.uri)(getattr(self._client, name))

        def call(*args: Any, **kwargs: Any) -> Any:
            about = args[0] if args and isinstance(args[0], str) else ""
            request = f"{name.replace('_', ' ')} {one_line(about)}".rstrip()
            if not name.startswith("create_"):
                return self._retry(request, method, *args, **kwargs)
            with self._errors_translated(request):
                return method(*args, **kwargs)

        return call

    def retry(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call an idempotent function, repeated with growing pauses after transient errors.

        Raises PipelineError after the time limit of this call, or of another one.
        """
        return self._retry("", work, *args, **kwargs)

    def _retry(self, request: str, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        if self._gone:
            raise PipelineError(self._gone)
        try:
            with self._errors_translated(request):
                return self._retries.call(work, *args, **kwargs)
        except MlflowException as error:
            if not is_transient(error):
                raise
            self.give_up(
                f"MLflow: {_reason(error)}; nothing is lost: missing rows are in the checkpoints"
                " and are stored when the same command is run again"
            )
            raise PipelineError(self._gone) from error

    @contextmanager
    def _errors_translated(self, request: str) -> Iterator[None]:
        """Raise StorageError of a full disk and of files that cannot be read but are not missing,
        RefusedError of a server that refuses a request."""
        try:
            yield
        except (MlflowException, OSError) as error:
            system = error if isinstance(error, OSError) else failed_copy(error)
            if system is not None and system.errno in DISK_ERRORS:
                # of a copy the second file is the one that is written
                place = system.filename2 or system.filename or "a file of the artifacts"
                raise StorageError(f"{place}: {system.strerror}") from None
            if (reason := refused(error)) is not None:
                raise RefusedError(self._refusal(request, reason)) from None
            if reason := failed_file(error) or unreadable(error):
                database = database_file(self.uri)
                if database and not (database.exists() and database.stat().st_size):
                    reason = f"{database} has been deleted"
                raise StorageError(unusable(self.uri, one_line(reason, limit=300))) from None
            if found := deleted(error):
                message = f"{found} was deleted in MLflow meanwhile; run the same command again"
                raise StorageError(message) from None
            raise

    def _refusal(self, request: str, reason: str) -> ConfigError:
        """Why a request was refused: the password, or what this user may do."""
        user, advice = identity(self.uri), CREDENTIALS
        if reason.startswith("HTTP 403") and user != ANONYMOUS:
            advice = "that user needs a permission there, which an administrator grants"
        what = f"{user}{request and f' to {request}'} ({one_line(reason, limit=200)})"
        return unusable(self.uri, f"the server refuses {what}; {advice}")

    def cancel_retries(self) -> None:
        """Cancel waiting calls, and do not repeat later ones: the command ends. The first of them
        that gets no answer, for which it waits less long, is the last."""
        self._cancelled.set()
        os.environ.update(IMPATIENT)

    def give_up(self, message: str = "MLflow: not waited for any longer") -> None:
        """Let every later call fail at once with this error."""
        self.cancel_retries()
        self._gone = message

    def find_run(self, run_id: str | None) -> Run | None:
        """A run, deleted ones too; None without an id, or if it is not here, as one that
        `mlflow gc` has removed: versions and logged models of it stay."""
        try:
            return self.get_run(run_id) if run_id else None
        except MlflowException as error:
            if error.error_code not in (MISSING, INVALID):
                raise
            return None

    def state_of(self, run_id: str) -> str | None:
        """MLflow's state of a run, as in FINISHED, or DELETED; None of one that is not here."""
        if (run := self.find_run(run_id)) is None:
            return None
        return "DELETED" if run.info.lifecycle_stage == "deleted" else str(run.info.status)

    def require_no_links(self, run_id: str, files: Iterable[str]) -> None:
        """Raise DamagedError if an artifact of a run would be written to where a link points."""
        root = local_path(self._artifact_uri(run_id))
        for path in [root / file for file in files] if root else []:
            for part in (path, *path.parents):
                if part.is_symlink():
                    raise DamagedError(f"{part} is a link; expected plain files and folders")
                if part == root:
                    break

    def _artifact_uri(self, run_id: str) -> str:
        """Where a run's artifacts are, which does not change: read once."""
        if (uri := self._artifact_uris.get(run_id)) is None:
            uri = self._artifact_uris[run_id] = self.get_run(run_id).info.artifact_uri
        return uri

    def download(self, artifact_uri: str, folder: Path) -> Path:
        """Copy an artifact, a file or a folder, into a folder; returns the copy's path.

        Raises PipelineError if there is no room for it.
        """
        require_room(local_path(artifact_uri), folder)
        return self.retry(logging_waits(self.uri)(copy_artifacts), artifact_uri, folder, self.uri)

    def download_artifacts(self, run_id: str, file: str, folder: Path) -> Path:
        """Copy an artifact of a run into a folder; returns its path. Raises as `download`."""
        uri = self._artifact_uri(run_id)
        root = local_path(uri)
        require_room(root and root / file, folder)
        return self.retry(logging_waits(self.uri)(read_artifact), uri, file, folder, self.uri)


def connect(uri: str) -> RetryingClient:
    """Connect to the store at a URI; a SQLite file that is not there is made.

    Raises ConfigError in seconds if none answers.
    """
    check_uri(uri)
    configure_mlflow(uri)
    database = database_file(uri)
    errors: tuple[type[Exception], ...] = (*store_errors(), ValueError)  # of an MLflow variable
    try:
        if database and not database.exists():
            _make_database(database)
        with encoded_artifact_root(), logging_waits(uri):
            client = MlflowClient(uri, uri)
            client.search_experiments(max_results=1)
    except errors as error:
        raise unusable(uri, first_line(error)) from None
    skip_prompt_checks(client)
    return RetryingClient(client, uri)


def _make_database(path: Path) -> None:
    """Make an empty database that only this user can read: all of it, or nothing."""
    place = Path(os.path.realpath(path))
    part = place.with_name(f"{place.name}.part-{os.getpid()}")
    with scratch_folder() as scratch:
        made = scratch / place.name
        try:
            make_tables(made)
        except store_errors() as error:
            reason = failed_file(error) or first_line(error)
            raise StorageError(f"{scratch}, in TMPDIR: {reason}") from None
        try:
            part.touch(0o600)
            shutil.copyfile(made, part)
            move_into_place(part, place)
        finally:
            part.unlink(missing_ok=True)


def connect_existing() -> RetryingClient:
    """Connect to an existing store; creates none. Raises ConfigError if there is none."""
    uri = tracking_uri()
    database = database_file(uri)
    if database and not database.exists():
        raise unusable(uri, f"there is no {database}")
    with store_lock(uri):
        return connect(uri)


def configure_mlflow(uri: str) -> None:
    """Set MLflow's global state; a command puts it back at its end (console/process.py)."""
    set_environment()
    decode_database_folders()
    logging.getLogger(LOGGER).setLevel(logging.CRITICAL)
    ignore_warnings()
    mlflow.set_tracking_uri(uri)  # pyfunc.log_model takes no client


def check_uri(uri: str) -> None:
    """Raise ConfigError in seconds if no store can answer there; writes nothing."""
    if wrong := unreadable_variables():
        raise ConfigError(*(Problem(reason, name) for name, reason in wrong.items()))
    if re.match("https?://[^/?#]", uri):
        reason = _server_problem(uri)
    elif path := database_file(uri):
        with logging_waits(uri):
            reason = file_problem(path) or _database_problem(uri, path)
    else:
        reason = "expected sqlite:///FILE or http(s)://HOST"
    if reason:
        raise unusable(uri, reason)


def _database_problem(uri: str, path: Path) -> str | None:
    """Why a file is no database of MLflow, or cannot be opened with these options; None if it is,
    or is new or empty."""
    try:
        url = make_url(uri)
        if reason := _option_problem(url):
            return reason
        if not (path.exists() and path.stat().st_size):
            return None
        with path.open("rb") as file:
            if file.read(6) != b"SQLite":
                return f"{path} is no SQLite database"
        if problem := schema_problem(create_engine(url, poolclass=NullPool)):
            return f"{path} {problem}"
    except REFUSED as error:
        if is_locked(error):  # by a process that makes its tables, for instance
            return None
        return f"{path} cannot be opened: {first_line(error)}"
    return None


def _option_problem(url: URL) -> str | None:
    """What is wrong with an option behind a URI's `?`; None if the driver takes all of them."""
    for name, value in url.query.items():
        if name not in OPTIONS:
            return f"{name}: unknown option; expected {', '.join(sorted(OPTIONS))}"
        if not isinstance(value, str):
            return f"{name}: given more than once; expected once"
        try:
            alone = url.set(database=MEMORY, query={name: value})
            create_engine(alone, poolclass=NullPool).connect().close()
        except REFUSED as error:
            return f"{name}={value}: {first_line(error)}"
    return None


def _server_problem(uri: str) -> str | None:
    """Why what answers at an address is no tracking server for this user; None if it is one."""
    try:
        found = within(ANSWER_SECONDS, partial(probe, uri, timeout_seconds=PROBE_SECONDS))
        if found is None:
            return f"no tracking server answers (no whole answer in {ANSWER_SECONDS} s)"
        answer, is_store = found
    except MlflowException as error:
        return _no_answer(error)
    except (ImportError, ValueError) as error:  # of a variable of MLflow, or what it needs
        return first_line(error)
    status = f"HTTP {answer.status_code} {one_line(answer.reason)}"
    if answer.is_redirect:
        target = one_line(answer.headers["Location"])
        return f"the server redirects to {target}; expected the address of the server itself"
    if answer.status_code in (401, 403):
        is_page = "html" in answer.headers.get("Content-Type", "")
        reason = "" if is_page else f": {one_line(answer.text.strip(), limit=100)}"
        return f"the server refuses {identity(uri)} ({status}{reason}); {CREDENTIALS}"
    if answer.status_code == 407:
        return f"a proxy refuses the request ({status})"
    if answer.status_code >= 500 or answer.status_code == 429:
        return f"no tracking server answers ({status})"
    return None if is_store else f"what answers there is no MLflow server ({status})"


def _no_answer(error: MlflowException) -> str:
    if isinstance(error.__cause__ or error.__context__, requests.exceptions.SSLError):
        found = re.search(r"(?i)certificate verify failed: [^()']*|\[SSL[^]]*\][^()']*", str(error))
        reason = one_line(found[0].strip(" '")) if found else "TLS failed"
        return (
            f"no secure connection: {reason}; expected a certificate that this machine trusts, "
            "or its authority's file in MLFLOW_TRACKING_SERVER_CERT_PATH"
        )
    _, reason = unanswered(error) or ("", first_line(error))
    return f"no tracking server answers ({one_line(reason)})"


def _reason(error: BaseException) -> str:
    if (found := unanswered(error)) is None:
        return first_line(error)
    server, reason = found
    return one_line(f"{server}: {reason}")


def unusable(uri: str, message: str) -> ConfigError:
    """The error of a store that cannot be used."""
    return ConfigError(Problem(message, f"MLFLOW_TRACKING_URI={uri}"))
