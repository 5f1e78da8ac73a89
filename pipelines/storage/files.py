"""Where corpora, checkpoints and starts are kept: in a folder of this machine, or where every node
sees them.

A plain path is a `Path`: what is written there is renamed into its place, synced and locked. A URI
is a `Shared` folder, in an object store or on a file system that is mounted everywhere. There,
nothing is renamed and nobody waits for a lock: what belongs together gets a name of its own, its
digests follow last, and without them it is not there. Keys and passwords are never part of a URI:
pyarrow reads them from the environment.
"""

import getpass
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from filelock import FileLock

from pipelines.console.errors import PipelineError, StorageError
from pipelines.storage.remote import Folder, RemoteDirectory, download, upload

DIGESTS_FILE = "SHA256SUMS"
"""The file, in the format of sha256sum, that vouches for those beside it."""


@dataclass(frozen=True)
class RemoteFile:
    """A file in shared storage, and what is to be found in it: a handle for any node."""

    place: RemoteDirectory
    sha256: str
    size: int

    def fetch(self, path: Path) -> None:
        """Copy it to a path of this machine. Raises PipelineError if it is not what it was."""
        try:
            self.place._do("read", download, path)
        except FileNotFoundError:
            raise PipelineError(f"{self.place}: is gone") from None
        if not self.is_copied_to(path):
            raise PipelineError(f"{self.place}: damaged: size or sha256 is not what it was")

    def is_copied_to(self, path: Path) -> bool:
        """Whether a file of this machine has its bytes."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        return _sha256(path, path.stat().st_mtime_ns) == self.sha256


File = Path | RemoteFile


def put_file(path: Path, place: RemoteDirectory) -> None:
    """Upload a file, and behind it its digest as NAME.sha256: only then it is there."""
    place._do("written", upload, path)
    _digest_of(place).write_text(f"{sha256_of(path)}  {place.name}\n")


def file_at(place: Folder) -> File | None:
    """The file of that name in storage; None if it is not there, or not yet."""
    if isinstance(place, Path):
        return place if place.exists() else None
    try:
        return RemoteFile(place, _digest_of(place).read_text()[:64], place.size())
    except FileNotFoundError:
        return None


def _digest_of(place: RemoteDirectory) -> RemoteDirectory:
    return RemoteDirectory(place.root, f"{place.path}.sha256")


def size_of(file: File) -> int:
    """Bytes of a file in storage."""
    return file.stat().st_size if isinstance(file, Path) else file.size


def uri_of(file: File) -> str:
    """The URI of a file in storage."""
    return file.as_uri() if isinstance(file, Path) else str(file.place)


def local_copy(file: File) -> Path:
    """The file itself, or a copy on this machine, made once for all its processes and kept.

    The copy has the digest of its bytes as its name; it is checked before each process's first use
    and made anew if it is damaged. Raises StorageError if it cannot be made.
    """
    if isinstance(file, Path):
        return file
    folder = Path(tempfile.gettempdir()) / f"dca-gpt-{getpass.getuser()}" / "corpora"
    path = folder / file.sha256
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not file.is_copied_to(path):
                part = path.with_suffix(".part")
                file.fetch(part)
                part.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error}") from error
    return path


@contextmanager
def temporary_copy(file: File) -> Iterator[Path]:
    """The file itself, or a copy on this machine for the time of a block."""
    if isinstance(file, Path):
        yield file
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / file.place.name
        file.fetch(path)
        yield path


def remove(folder: Folder) -> None:
    """Remove a folder that is no longer needed. What cannot be removed is in nobody's way."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with suppress(StorageError):
        folder.remove()


def sha256_of(path: Path) -> str:
    """The sha256 of a file of this machine."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _sha256(path: Path, mtime_ns: int) -> str:
    """Read once by each process, as long as the file is not touched."""
    return sha256_of(path)
