"""File locks of this machine, by name: on a database, and on work on a store; waits for others."""

import hashlib
import logging
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from pipelines.compat.mlflow_errors import is_locked
from pipelines.console.retries import if_longer
from pipelines.console.secrets import redact
from pipelines.storage.locks import hold_lock
from pipelines.storage.private import lock_folder
from pipelines.tracking.uri import database_file, tracking_uri

PORTS = {"http": 80, "https": 443}
"""Of servers whose address has none."""
OPEN_SECONDS = 300
"""Longest wait for another process that opens a database: a new one takes seconds."""
SILENT_SECONDS = 1.0
"""Longest wait for the lock of a database without a line."""
SERVER_SECONDS = 5.0
"""How long a server may take to answer without a line, where nothing else is written either."""
SERVER_LOG_SECONDS = 10.0
"""Longest wait for a server without a line, and between two lines."""


@contextmanager
def store_lock(uri: str) -> Iterator[None]:
    """Hold the lock on a store's first use, which MLflow does not protect.

    Raises PipelineError if another process of this machine holds it too long.
    """
    busy = f"MLFLOW_TRACKING_URI={redact(uri)}: another process opens it"
    with hold_lock(_file(uri), lambda holder: f"{busy} ({holder})", wait_seconds=OPEN_SECONDS):
        yield


@contextmanager
def logging_waits(uri: str) -> Iterator[None]:
    """Log a line if a call takes long while another process holds the lock of the database, or the
    store is a server, which may have stopped.

    MLflow waits in each call up to 20 s for a lock, and two minutes for a server, without a word.
    """
    path, started = database_file(uri), time.monotonic()

    def log() -> float | None:
        if path is not None:
            _log_lock(path)
            return None
        waited = time.monotonic() - started
        quiet = time.monotonic() - max(getattr(one, "since", 0) for one in (sys.stdout, sys.stderr))
        if (longest := max(waited, quiet)) < SERVER_LOG_SECONDS:
            return SERVER_LOG_SECONDS - longest
        text = "waiting for %s (for %.0f s now)"
        logging.getLogger(__name__).warning(text, redact(uri), waited)
        return SERVER_LOG_SECONDS

    with if_longer(SERVER_SECONDS if path is None else SILENT_SECONDS, log):
        yield


def _log_lock(path: Path) -> None:
    place = f"{path.absolute().as_uri()}?mode=rw"  # which makes no file
    try:
        with closing(sqlite3.connect(place, timeout=0, isolation_level=None, uri=True)) as database:
            database.execute("begin immediate")
    except sqlite3.Error as error:
        if is_locked(error):
            logging.getLogger(__name__).warning("waiting for the lock of %s", path)


@contextmanager
def exclusive_lock(work: str, *, wait_seconds: float = 0) -> Iterator[None]:
    """Hold the lock of some work on the same store, among the processes of this machine and user.

    Raises PipelineError if another process holds it, and still does after the wait.
    """

    def refused(holder: str) -> str:
        return (
            f"{work}: already running ({holder}); wait for it or stop it, "
            "then run the same command again"
        )

    with hold_lock(_file(tracking_uri(), work), refused, wait_seconds=wait_seconds):
        yield


def _file(uri: str, work: str = "") -> Path:
    """The file of a lock, the same for one store: a database may be given by several paths, and
    with options, a server by several addresses."""
    given = database_file(uri)
    database = None if given is None else Path(os.path.realpath(given))
    name = f"{_address(uri) if database is None else database} {work}"
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return lock_folder(database) / f".dca-gpt-{digest}.lock"


def _address(uri: str) -> str:
    """A server's URI in one spelling, without the user; anything else as it is given."""
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port or PORTS.get(parts.scheme)
    except ValueError:
        return uri  # refused later, with the reason
    if not host:
        return uri
    host = "localhost" if host in ("127.0.0.1", "::1") else host
    where = f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}"
    return where if parts.scheme in PORTS else f"{where}?{parts.query}"
