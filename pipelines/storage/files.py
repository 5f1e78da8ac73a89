"""Files in storage: a path of this machine, or a remote file with its digest; and local copies.

Used by data for corpora, by training and the registry for weights, by tracking for what it lists.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines.console.errors import DamagedError, PipelineError, StorageError
from pipelines.console.text import reason_of
from pipelines.storage.digests import cached_sha256, sha256_of
from pipelines.storage.locks import hold_lock
from pipelines.storage.private import private_folder
from pipelines.storage.remote import Folder, RemoteDirectory
from pipelines.storage.scratch import scratch_folder

DOWNLOAD_SECONDS = 3600
"""Longest wait for another process that copies the same file."""


@dataclass(frozen=True)
class RemoteFile:
    """A file that every node sees, with the digest and size of its content."""

    place: RemoteDirectory
    sha256: str
    size: int

    def fetch(self, path: Path) -> None:
        """Copy it to a path of this machine.

        Raises PipelineError if it is gone, DamagedError if its content has changed.
        """
        try:
            self.place.download(path)
        except FileNotFoundError:
            raise PipelineError(f"{self.place}: is gone") from None
        if not self.is_copied_to(path):
            raise DamagedError(f"{self.place}: damaged: size or sha256 is not what it was")

    def is_intact(self) -> bool:
        """Whether its content, which is read, has the digest beside it."""
        (found,) = self.place.add_to(hashlib.sha256())
        return bool(found.hexdigest() == self.sha256)

    def is_copied_to(self, path: Path) -> bool:
        """Whether a file of this machine has the same content."""
        if not path.is_file():
            return False
        return path.stat().st_size == self.size and cached_sha256(path) == self.sha256


File = Path | RemoteFile


def put_file(path: Path, place: RemoteDirectory) -> None:
    """Upload a file and then its digest as NAME.sha256; without that it does not count as there."""
    place.upload(path)
    _digest_of(place).write_text(f"{sha256_of(path)}  {place.name}\n")


def file_at(place: Folder) -> File | None:
    """The file of that name in storage; None if it is not there or not complete."""
    if isinstance(place, Path):
        return place if place.is_file() else None  # a pipe would be waited for
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
    """The file itself, or a copy on this machine that is kept and shared by all processes.

    The copy is named after the digest of its content. Each process checks it before its first use
    and makes it again if it is damaged. Raises StorageError if it cannot be written, and
    PipelineError if another process takes too long to do so.
    """
    if isinstance(file, Path):
        return file
    folder = private_folder() / "corpora"
    path = folder / file.sha256

    def refused(holder: str) -> str:
        return f"{path}: another process downloads it ({holder})"

    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        with hold_lock(path.with_suffix(".lock"), refused, wait_seconds=DOWNLOAD_SECONDS):
            if not file.is_copied_to(path):
                part = path.with_suffix(".part")
                file.fetch(part)
                part.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {reason_of(error)}") from error
    return path


def require_room(path: Path | None, folder: Path) -> None:
    """Raise StorageError if a file, or the files of a folder, of this machine do not fit another
    folder: the copy would fill the disk, as of a file with holes, which takes no room itself."""
    if path is None:
        return
    inside = path.rglob("*") if path.is_dir() else [path]
    size = sum(one.stat().st_size for one in inside if one.is_file())
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise StorageError(f"{path}: has {size:,} bytes, more than the {free:,} free in {folder}")


def move_into_place(part: Path, path: Path) -> None:
    """Give a file or folder that is complete its name, under which it then counts.

    Synced to disk before and after: a power cut leaves all of it there, or none.
    """
    for inside in (*(part.rglob("*") if part.is_dir() else ()), part):
        _sync(inside)
    part.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def temporary_copy(file: File) -> Iterator[Path]:
    """The file itself, or a copy on this machine that is deleted at the end of the block."""
    if isinstance(file, Path):
        yield file
        return
    with scratch_folder() as scratch:
        path = scratch / file.place.name
        file.fetch(path)
        yield path


def remove(folder: Folder) -> None:
    """Remove a folder that is no longer needed; what cannot be removed is left, without error."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with suppress(StorageError):
        folder.remove()
