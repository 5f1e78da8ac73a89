"""Temporary folders of commands, and those that a killed command has left behind.

Used by whatever needs files for a while, and by clean.py.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "dca-gpt-scratch-"
YOUNG_SECONDS = 60
"""Age below which a folder may not be locked yet by the process that makes it."""


@contextmanager
def scratch_folder(inside: Path | None = None) -> Iterator[Path]:
    """A new folder for the time of a block, in the machine's temporary folder or `inside` another.

    It is locked until then, so that others see whether its process still runs; on a file system
    without locks they cannot see it, and leave it.
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=inside) as name:
        descriptor = os.open(name, os.O_RDONLY)
        try:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(descriptor)


def abandoned_folders(inside: Path) -> list[Path]:
    """The user's own temporary folders whose process has ended."""
    try:
        found = sorted(inside.glob(f"{PREFIX}*"))
    except OSError:
        return []
    return [path for path in found if _is_abandoned(path)]


def _is_abandoned(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # a link, a file, another user's, or gone
        return False
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.getuid() or abs(time.time() - status.st_ctime) < YOUNG_SECONDS:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it is locked, or cannot be
        return False
    finally:
        os.close(descriptor)
    return True
