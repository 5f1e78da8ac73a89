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


def lock_folder() -> Path:
    """For locks: in XDG_RUNTIME_DIR if that is this user's alone, else where copies are."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and _is_private(Path(runtime)):
        return _own(Path(runtime) / "dca-gpt")
    folder = private_folder() / "locks"
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
    if not _is_private(folder):
        message = "expected a folder of this user alone, mode 700; remove it, or set another TMPDIR"
        raise ConfigError(Problem(message, str(folder)))
    return folder


def _is_private(folder: Path) -> bool:
    """Whether it is a folder, not a link to one, that no other user can read or write."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.getuid()
        and stat.S_IMODE(found.st_mode) & 0o077 == 0
    )


def make_private(folder: Path) -> None:
    """Make a folder and its missing parents, of this user alone; one that exists stays as it is."""
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(exist_ok=True)  # raises if it is a file
