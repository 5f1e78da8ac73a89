"""The tracking store: MLflow's experiments, runs, artifacts and logged models.

A run is found by what it is (tags `dca.kind` and `dca.key`), never by its name or by the order of
events, so that a command that was killed finds its own work again. Whoever needs the store while it
is locked or away waits for it; histories are written behind the back of the training.
"""

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
    """One process of this machine at a time; outside the folders that users look into."""
    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"dca-gpt-{getpass.getuser()}-{name}.lock")


@contextmanager
def exclusive_lock(work: str, *, wait_seconds: float = 0) -> Iterator[None]:
    """Keep other processes of this machine from the same work on the same store.

    Raises PipelineError if one is at it, and still is after the wait.
    """
    lock = database_lock(f"{tracking_uri()} {work}")
    try:
        held = lock.acquire(timeout=wait_seconds)
    except Timeout:
        process = Path(lock.lock_file).read_text().strip()
        raise PipelineError(
            f"{work}: process {process} is at work on it; wait for it or stop it, "
            "then run the same command again"
        ) from None
    with held:
        Path(lock.lock_file).write_text(f"{os.getpid()}\n")
        yield
