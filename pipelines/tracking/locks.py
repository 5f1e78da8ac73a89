"""File locks of this machine, by name: on a database, and on work on a store."""

import getpass
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipelines.console.errors import PipelineError
from pipelines.tracking.uri import tracking_uri


def database_lock(uri: str) -> FileLock:
    """A lock on a store's first use, which MLflow does not protect; outside the users' folders."""
    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"dca-gpt-{getpass.getuser()}-{name}.lock")


@contextmanager
def exclusive_lock(work: str, *, wait_seconds: float = 0) -> Iterator[None]:
    """Hold the lock of some work on the same store, among the processes of this machine.

    Raises PipelineError if another process holds it, and still does after the wait.
    """
    lock = database_lock(f"{tracking_uri()} {work}")
    try:
        held = lock.acquire(timeout=wait_seconds)
    except Timeout:
        process = Path(lock.lock_file).read_text().strip()
        raise PipelineError(
            f"{work}: already running (process {process}); wait for it or stop it, "
            "then run the same command again"
        ) from None
    with held:
        Path(lock.lock_file).write_text(f"{os.getpid()}\n")
        yield
