"""A connection to the tracking store, whose calls are repeated while it is locked or unavailable.

Used by the store, the model store and the registry. A command opens a connection of its own, so
that cancelled retries of one command do not affect the next one in the same process.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipelines.compat.mlflow import (
    INVALID,
    LOGGER,
    MISSING,
    ignore_warnings,
    is_transient,
    set_environment,
)
from pipelines.console.errors import ConfigError, DamagedError, PipelineError, Problem
from pipelines.console.retries import RetryPolicy
from pipelines.console.text import first_line
from pipelines.tracking.locks import store_lock
from pipelines.tracking.uri import database_file, local_path, tracking_uri

PROBE_SECONDS = 5
MAX_UNAVAILABLE_SECONDS = 3600
"""How long a store may be unavailable before a command fails; missing rows are in checkpoints."""
MAX_PAUSE_SECONDS = 10

T = TypeVar("T")


class RetryingClient:
    """An MLflow client that repeats its calls while the store is locked or unavailable.

    Methods that create something are not repeated: the caller checks first whether they did.
    """

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self._client = client
        self.uri = uri
        self._cancelled = threading.Event()
        self._retries = RetryPolicy(
            is_transient,
            pause_seconds=0.5,
            max_pause_seconds=MAX_PAUSE_SECONDS,
            max_seconds=MAX_UNAVAILABLE_SECONDS,
            cancelled=self._cancelled,
            name="MLflow",
        )

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if name.startswith("create_"):
            return method
        return lambda *args, **kwargs: self.retry(method, *args, **kwargs)

    def retry(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call an idempotent function, repeated with growing pauses after transient errors.

        Raises PipelineError after the time limit of this call, or of another one.
        """
        try:
            return self._retries.call(work, *args, **kwargs)
        except MlflowException as error:
            if not is_transient(error):
                raise
            self.cancel_retries()
            raise PipelineError(
                f"MLflow: {first_line(error)}; nothing is lost: missing rows are in the checkpoints"
                " and are stored when the same command is run again"
            ) from error

    def cancel_retries(self) -> None:
        """Cancel waiting calls, and do not repeat later ones: the command ends."""
        self._cancelled.set()

    def state_of(self, run_id: str) -> str | None:
        """MLflow's state of a run, as in FINISHED, or DELETED; None of one that is not here."""
        try:
            info = self.get_run(run_id).info
        except MlflowException as error:
            if error.error_code not in (MISSING, INVALID):
                raise
            return None
        return "DELETED" if info.lifecycle_stage == "deleted" else str(info.status)

    def require_no_links(self, run_id: str, files: Iterable[str]) -> None:
        """Raise DamagedError if an artifact of a run would be written to where a link points."""
        root = local_path(self.get_run(run_id).info.artifact_uri)
        for path in [root / file for file in files] if root else []:
            for part in (path, *path.parents):
                if part.is_symlink():
                    raise DamagedError(f"{part} is a link; expected plain files and folders")
                if part == root:
                    break

    def download(self, artifact_uri: str, folder: Path) -> Path:
        """Copy an artifact, a file or a folder, into a folder; returns the copy's path."""
        copy = self.retry(
            mlflow.artifacts.download_artifacts,
            artifact_uri=artifact_uri,
            dst_path=str(folder),
            tracking_uri=self.uri,
            registry_uri=self.uri,
        )
        return Path(copy)


def connect(uri: str) -> RetryingClient:
    """Connect to the store at a URI. Raises ConfigError in seconds if none answers."""
    check_uri(uri)
    configure_mlflow(uri)
    try:
        client = MlflowClient(uri, uri)
        client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError) as error:
        raise _unusable(uri, first_line(error)) from None
    return RetryingClient(client, uri)


def connect_existing() -> RetryingClient:
    """Connect to an existing store; creates none. Raises ConfigError if there is none."""
    uri = tracking_uri()
    database = database_file(uri)
    if database and not database.exists():
        raise _unusable(uri, f"there is no {database}")
    with store_lock(uri):
        return connect(uri)


def configure_mlflow(uri: str) -> None:
    """Set MLflow's global state; a command puts it back at its end (console/process.py)."""
    set_environment()
    logging.getLogger(LOGGER).setLevel(logging.CRITICAL)
    ignore_warnings()
    mlflow.set_tracking_uri(uri)  # pyfunc.log_model takes no client


def check_uri(uri: str) -> None:
    """Raise ConfigError in seconds if no store can answer there; writes nothing."""
    if uri.startswith(("http://", "https://")):
        _probe(uri)
    elif path := database_file(uri):
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise _unusable(uri, f"{path} cannot be written")
        if path.is_file() and _start_of(path) not in (b"", b"SQLite"):
            raise _unusable(uri, f"{path} is no SQLite database")
    else:
        raise _unusable(uri, "expected sqlite:///FILE or http(s)://HOST")


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(6)


def _probe(uri: str) -> None:
    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=PROBE_SECONDS).raise_for_status()
    except requests.RequestException as error:
        raise _unusable(uri, f"no tracking server answers ({type(error).__name__})") from None


def _unusable(uri: str, message: str) -> ConfigError:
    return ConfigError(Problem(message, f"MLFLOW_TRACKING_URI={uri}"))
