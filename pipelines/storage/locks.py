"""File locks among processes, whose waits end with an error that names the holder.

Used by the tracking store's locks, the writers of a folder and the copies of corpora.
"""

import logging
import os
import platform
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from pipelines.console.errors import PipelineError, StorageError
from pipelines.console.secrets import redact
from pipelines.console.text import one_line, reason_of

MAX_COMMAND_CHARACTERS = 200
SILENT_SECONDS, REPEAT_SECONDS = 3, 15
"""Longest wait without a line that names the holder, and without another one."""


@contextmanager
def hold_lock(
    path: Path, refused: Callable[[str], str], *, wait_seconds: float, keep: bool = False
) -> Iterator[None]:
    """Hold the lock of a file in the time of a block.

    Args:
        path: The file; it contains the holder's process number and host.
        refused: Makes the text of the error from that of the holder.
        wait_seconds: Longest wait for another holder.
        keep: Whether the file stays: for one that other machines see, whose removal may not be
            noticed by their processes that wait.

    Raises:
        PipelineError: If another process still holds it after the wait.
        StorageError: If there can be no such file, or no lock on it.

    """
    lock = FileLock(path, mode=0o600)  # who can open a file can lock it
    try:
        _acquire(lock, path, wait_seconds)
    except Timeout:
        raise PipelineError(refused(_holder(path))) from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be locked: {reason_of(error)}") from error
    is_file = not isinstance(lock, SoftFileLock)  # else, without flock, the file itself is the lock
    try:
        if (
            is_file and path.stat().st_nlink == 1
        ):  # else it is another file too, which others linked
            with suppress(OSError):  # of a full disk: it is for the messages of others only
                path.write_text(f"{os.getpid()} {platform.node()}\n")
        yield
    finally:
        if (
            is_file and not keep
        ):  # before it is released: a process that waits for it finds that it is gone
            path.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: BaseFileLock, path: Path, wait_seconds: float) -> None:
    """Acquire a lock, with lines for people if it takes long. Raises Timeout."""
    left, pause = wait_seconds, min(wait_seconds, SILENT_SECONDS)
    while True:
        try:
            lock.acquire(timeout=pause)
            return
        except Timeout:
            left -= pause
            if left <= 0:
                raise
        logging.getLogger(__name__).warning(
            "waits for %s, which holds %s, at most %.0f s", _holder(path), path, left
        )
        pause = min(left, REPEAT_SECONDS)


def _holder(path: Path) -> str:
    """Who has written its number into a lock's file: `process 12 on HOST: python sweep.py`."""
    try:
        process, host, *_ = [*path.read_text().split(), "", ""]
    except OSError:
        process = host = ""
    if host != platform.node():
        return f"process {process or 'unknown'}{f' on {host}' if host else ''}"
    try:
        words = Path(f"/proc/{int(process)}/cmdline").read_text().rstrip("\0").split("\0")
    except (OSError, ValueError):
        return f"process {process}"
    return f"process {process}: {one_line(redact(shlex.join(words)), limit=MAX_COMMAND_CHARACTERS)}"
