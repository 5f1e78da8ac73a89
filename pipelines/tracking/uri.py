"""Where the tracking store is: MLflow's URI of a database file or of a server."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipelines.console.secrets import redact

SQLITE = "sqlite:///"


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else mlflow.db in the current folder, where a bare `mlflow ui` looks."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    database = database_file(uri)
    return f"{SQLITE}{database.absolute()}" if database else uri


def shown_tracking_uri() -> str:
    """The same for people and files: without the password and tokens that it may contain."""
    return redact(tracking_uri())


def database_file(uri: str) -> Path | None:
    """The SQLite file of a store; None of a server."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def local_path(uri: str) -> Path | None:
    """The path of a file URI or of a path; None for any other URI."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None
