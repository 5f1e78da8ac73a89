"""Folders of this user alone, for locks and copies, in places that all users of a machine share.

Used by the locks, the copies of corpora and a Ray that is started on this machine. Another user who
could write there could hold every lock or replace a copy.
"""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from pipelines.console.errors import ConfigError, Problem, StorageError

SHARED = "/tmp"
"""The same place for all processes of a machine, whatever their variables are."""
OTHERS_USE, OTHERS_WRITE = 0o077, 0o022
"""Permissions of a folder that other users have."""


def lock_folder(file: Path | None = None) -> Path:
    """For locks on work on a file: its own folder, if only this user can write there. Else, and for
    other work, one in /tmp.

    No variable of the environment decides: a login, cron and a batch system have different ones,
    and their processes would not see each other's locks.
    """
    if file is not None and _is_own(file.parent, OTHERS_WRITE):
        return file.parent
    try:
        own = private_folder(SHARED)
    except (ConfigError, StorageError):  # another user has made it, or it cannot be written
        own = private_folder()
    folder = own / "locks"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def private_folder(parent: str | None = None) -> Path:
    """In the folder for temporary files, or in another one that all users share.

    Raises StorageError if it cannot be made, ConfigError if what is there is another user's, a link
    or open to others.
    """
    return _own(private_place(Path(parent or tempfile.gettempdir())))


def private_place(parent: Path) -> Path:
    """Where `private_folder` is, or would be."""
    return parent / f"dca-gpt-{os.getuid()}"


def _own(folder: Path) -> Path:
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}") from None
    if not _is_own(folder, OTHERS_USE):
        message = "expected a folder of this user alone, mode 700; remove it, or set another TMPDIR"
        raise ConfigError(Problem(message, str(folder)))
    return folder


def _is_own(folder: Path, forbidden: int) -> bool:
    """Whether it is a folder of this user, not a link to one, that this user can write and of which
    others have no permission that is forbidden."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.getuid()
        and stat.S_IMODE(found.st_mode) & forbidden == 0
        and os.access(folder, os.W_OK | os.X_OK)
    )


def make_private(folder: Path) -> None:
    """Make a folder and its missing parents, of this user alone; one that exists stays as it is."""
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(exist_ok=True)  # raises if it is a file
