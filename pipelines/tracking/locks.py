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


def named_lock(name: str) -> FileLock:
    """A lock of this machine and user by any name; its file is outside the users' folders.

    A store's URI is the name of the lock on its first use, which MLflow does not protect.
    """
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"dca-gpt-{getpass.getuser()}-{digest}.lock")


@contextmanager
def exclusive_lock(work: str, *, wait_seconds: float = 0) -> Iterator[None]:
    """Hold the lock of some work on the same store, among the processes of this machine.

    Raises PipelineError if another process holds it, and still does after the wait.
    """
    lock = named_lock(f"{tracking_uri()} {work}")
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
