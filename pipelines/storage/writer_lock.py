"""One writing process for a folder in storage. Used by the training loop."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.console.errors import StorageError
from pipelines.console.text import reason_of
from pipelines.storage.locks import hold_lock
from pipelines.storage.private import make_private
from pipelines.storage.remote import Folder

LOCK_SECONDS = 60
"""Longest wait for the lock of a process that was killed or cut off and is still ending."""


@contextmanager
def writer_lock(folder: Folder) -> Iterator[Folder]:
    """The folder, for the caller to write into until the end of the block.

    A folder of this machine is locked by a file in it: an earlier writer is waited for, and
    PipelineError is raised if it does not end. A remote folder, whose earlier writer may be out of
    reach, is claimed: the earlier writer fails at its next write. Raises StorageError if the lock
    cannot be written.
    """
    if not isinstance(folder, Path):
        yield folder.claimed()
        return
    try:
        make_private(folder)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {reason_of(error)}") from error
    with hold_lock(
        folder / "lock",
        lambda holder: f"{folder}: another process trains here ({holder})",
        wait_seconds=LOCK_SECONDS,
        keep=True,  # the folder may be one of a file server
    ):
        yield folder
