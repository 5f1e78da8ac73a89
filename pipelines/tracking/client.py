"""The tracking store: MLflow's experiments, runs, artifacts and logged models.

A run is found by what it is (tags `dca.kind` and `dca.key`), never by its name or by the order of
events, so that a command that was killed finds its own work again. Whoever needs the store while it
is locked or away waits for it; histories are written behind the back of the training.
"""

import logging
import os
import warnings
from pathlib import Path
from typing import cast

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipelines.console.errors import ConfigError
from pipelines.tracking.locks import database_lock
from pipelines.tracking.retries import RetryingClient, cancel_retries
from pipelines.tracking.uri import tracking_uri

PROBE_SECONDS = 5

__all__ = ["Run"]  # a name that others need for their types


def connect(uri: str) -> MlflowClient:
    """A client of a store that answers. Raises ConfigError in seconds if it does not."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="mlflow")
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # ours know what they repeat
    check_uri(uri)
    cancel_retries.clear()
    mlflow.set_tracking_uri(uri)
    try:
        client = MlflowClient(uri, uri)
        client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(f"MLFLOW_TRACKING_URI={uri}: {reason}") from None
    return cast(MlflowClient, RetryingClient(client))


def check_uri(uri: str) -> None:
    """Raise ConfigError in seconds if no store can answer there; writes nothing."""
    if uri.startswith(("http://", "https://")):
        _probe(uri)
    elif uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ConfigError(f"MLFLOW_TRACKING_URI={uri}: {path} cannot be written")
        if path.is_file() and _start_of(path) not in (b"", b"SQLite"):
            raise ConfigError(f"MLFLOW_TRACKING_URI={uri}: {path} is no SQLite database")
    else:
        raise ConfigError(f"MLFLOW_TRACKING_URI={uri}: expected sqlite:///FILE or http(s)://HOST")


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(6)


def _probe(uri: str) -> None:
    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=PROBE_SECONDS).raise_for_status()
    except requests.RequestException as error:
        reason = type(error).__name__
        raise ConfigError(
            f"MLFLOW_TRACKING_URI={uri}: no tracking server answers ({reason})"
        ) from None


def connect_existing() -> MlflowClient:
    """A client of the store as it is; makes none. Raises ConfigError if there is none."""
    uri = tracking_uri()
    database = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not database.exists():
        raise ConfigError(f"MLFLOW_TRACKING_URI={uri}: there is no {database}")
    with database_lock(uri):
        return connect(uri)
