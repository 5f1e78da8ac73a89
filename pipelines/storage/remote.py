"""A folder that every node sees: in S3 or GCS, or on a file system mounted everywhere.

Nothing is renamed or locked there, and an operation may be repeated. So files that belong together
are written under a new name with their digests last; without digests they do not count as present.
The bytes are copied in filesystem.py.
"""

import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pipelines.console.errors import PipelineError, StorageError
from pipelines.console.text import reason_of
from pipelines.storage.filesystem import RETRIES, connect, download, upload
from pipelines.storage.scratch import scratch_folder

OWNER = "owner"
"""Name of the file with the identifier of the process that writes into a remote folder now."""

CHUNK_BYTES = 1 << 22
"""Read at a time."""

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteDirectory:
    """A file or folder below a URI: a small value that can be pickled and sent to other nodes.

    Each process connects by itself. Operations are repeated while the store is unavailable or
    overloaded; with `retry=False` they fail within seconds. They raise StorageError if the store
    stays unavailable or refuses.
    """

    root: str
    """The URI in the configuration."""
    path: str = ""
    """The path below it, as in `fits/0123`."""
    owner: str = ""
    """Identifier of the writer, in the value that `claimed` returned to it."""

    def __truediv__(self, name: str) -> "RemoteDirectory":
        return RemoteDirectory(self.root, f"{self.path}/{name}".strip("/"))

    def __str__(self) -> str:
        place, mark, options = self.root.partition("?")
        return "/".join(filter(None, [place.rstrip("/"), self.path])) + mark + options

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]

    def claimed(self) -> "RemoteDirectory":
        """This folder with the caller as its only writer; an earlier writer loses the claim.

        It finds out by `require_owner`. Unlike a lock, a claim does not outlast a process that
        died.
        """
        mine = replace(self, owner=uuid.uuid4().hex[:12])
        (self / OWNER).write_text(mine.owner)
        return mine

    def require_owner(self) -> None:
        """Raise PipelineError if another process has claimed the folder since, or it is gone."""
        try:
            owner = (self / OWNER).read_text()
        except FileNotFoundError:
            owner = ""
        if owner != self.owner:
            raise PipelineError(f"{self}: another process trains here, or its work is done")

    def exists(self) -> bool:
        """Whether there is a file or folder of this name."""

        def find(system: Any, path: str) -> bool:
            from pyarrow import fs

            return bool(system.get_file_info(path).type != fs.FileType.NotFound)

        return self._call("read", find)

    def files(self) -> set[str]:
        """The paths, relative to this folder, of all files below it."""

        def find(system: Any, path: str) -> set[str]:
            from pyarrow import fs

            found = system.get_file_info(
                fs.FileSelector(path, recursive=True, allow_not_found=True)
            )
            return {info.path[len(path) + 1 :] for info in found if info.type == fs.FileType.File}

        return self._call("read", find)

    def put(self, folder: Path, *names: str) -> None:
        """Upload files of a folder of this machine, in this order."""
        for name in names:
            (self / name).upload(folder / name)

    def get(self, folder: Path, *names: str) -> None:
        """Copy files into a folder of this machine. Raises FileNotFoundError if one is missing."""
        for name in names:
            (self / name).download(folder / name)

    def upload(self, path: Path) -> None:
        """Write the file of this name from one of this machine."""
        self._call("written", upload, path)

    def download(self, path: Path) -> None:
        """Copy the file of this name to a path of this machine. Raises FileNotFoundError."""
        self._call("read", download, path)

    def write_text(self, text: str, *, retry: bool = True) -> None:
        """Write a small file of this name."""
        with scratch_folder() as scratch:
            path = scratch / "text"
            path.write_text(text, "utf-8")
            self._call("written", upload, path, retry=retry)

    def read_text(self, *, retry: bool = True) -> str:
        """The text of the small file of this name. Raises FileNotFoundError if there is none."""

        def read(system: Any, path: str) -> str:
            with system.open_input_stream(path) as stream:
                return str(stream.read(), "utf-8")

        return self._call("read", read, retry=retry)

    def add_to(self, *digests: Any) -> list[Any]:
        """Hashes like these with the file's bytes added. Raises FileNotFoundError."""

        def add(system: Any, path: str) -> list[Any]:
            added = [digest.copy() for digest in digests]  # anew if reading is repeated
            with system.open_input_stream(path) as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    for digest in added:
                        digest.update(chunk)
            return added

        return self._call("read", add)

    def size(self) -> int:
        """Bytes of the file of this name. Raises FileNotFoundError if there is none."""

        def measure(system: Any, path: str) -> int:
            with system.open_input_file(path) as file:
                return int(file.size())

        return self._call("read", measure)

    def delete_file(self, *, retry: bool = True) -> None:
        """Delete the file of this name."""
        self._call("written", lambda system, path: system.delete_file(path), retry=retry)

    def remove(self) -> None:
        """Remove the folder and all files below it, if it is there."""

        def delete(system: Any, path: str) -> None:
            with suppress(FileNotFoundError):
                system.delete_dir(path)

        self._call("written", delete)

    def _call(self, verb: str, work: Callable[..., T], *args: Any, retry: bool = True) -> T:
        """work(file system, path there, *args); `verb` is for the error's text."""
        try:
            system, root = connect(self.root)
            path = f"{root}/{self.path}".rstrip("/")
            if not retry:
                return work(system, path, *args)
            return RETRIES.call(work, system, path, *args)
        except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            if isinstance(error, FileNotFoundError) and verb == "read":
                raise
            raise StorageError(f"{self}: cannot be {verb}: {reason_of(error)}") from error


Folder = Path | RemoteDirectory
"""A folder of this machine, or one that every node sees."""
