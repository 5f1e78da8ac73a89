"""Where corpora, checkpoints and starts are kept: in a folder of this machine, or where every node
sees them.

A plain path is a `Path`: what is written there is renamed into its place, synced and locked. A URI
is a `Shared` folder, in an object store or on a file system that is mounted everywhere. There,
nothing is renamed and nobody waits for a lock: what belongs together gets a name of its own, its
digests follow last, and without them it is not there. Keys and passwords are never part of a URI:
pyarrow reads them from the environment.
"""

import re
import tempfile
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pipelines.console.errors import PipelineError, StorageError
from pipelines.console.retries import RetryPolicy
from pipelines.console.text import one_line

OWNER = "owner"
"""The object that names whoever writes into a shared folder now."""
PATIENCE_SECONDS = 600
"""How long an object store may be away before it counts as a disk that refuses."""
MAX_PAUSE_SECONDS = 10
CHUNK_BYTES = 1 << 24
REFUSED = re.compile(
    r"ACCESS_DENIED|NO_SUCH_|INVALID_|SIGNATURE|NOT_FOUND|EXPIRED|DENIED|UNAUTHENTICATED"
    r"|HTTP status 4(?!08|29)"
)
"""What a store says that would say it again. All else that is not of this machine may pass."""

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteDirectory:
    """A folder that every node sees: a value to pick apart and send; each process connects itself.

    All that it does is tried again for as long as PATIENCE_SECONDS while the store is away or
    overloaded. Raises StorageError if that was in vain or the store refuses.
    """

    root: str
    """The URI that the configuration names."""
    path: str = ""
    """Below it, as in `fits/0123`."""
    owner: str = ""
    """Who writes here, if this value is the writer's; see `claimed`."""

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
        """This folder, to be written by the caller alone: whoever wrote here before loses it.

        A lock that outlives its holder would have to be broken; this one is taken away. The one
        who lost it finds out by `require_owner`.
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

        def ask(system: Any, path: str) -> bool:
            from pyarrow import fs

            return bool(system.get_file_info(path).type != fs.FileType.NotFound)

        return self._do("read", ask)

    def files(self) -> set[str]:
        """The paths, relative to this folder, of all files below it."""

        def ask(system: Any, path: str) -> set[str]:
            from pyarrow import fs

            found = system.get_file_info(
                fs.FileSelector(path, recursive=True, allow_not_found=True)
            )
            return {info.path[len(path) + 1 :] for info in found if info.type == fs.FileType.File}

        return self._do("read", ask)

    def put(self, folder: Path, *names: str) -> None:
        """Upload files of a folder of this machine, in this order."""
        for name in names:
            (self / name)._do("written", upload, folder / name)

    def get(self, folder: Path, *names: str) -> None:
        """Copy files into a folder of this machine. Raises FileNotFoundError if one is missing."""
        for name in names:
            (self / name)._do("read", download, folder / name)

    def write_text(self, text: str, *, patient: bool = True) -> None:
        """Write a small file of this name."""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "text"
            path.write_text(text)
            self._do("written", upload, path, patient=patient)

    def read_text(self, *, patient: bool = True) -> str:
        """The small file of this name. Raises FileNotFoundError if there is none."""

        def read(system: Any, path: str) -> str:
            with system.open_input_stream(path) as stream:
                return str(stream.read(), "utf-8")

        return self._do("read", read, patient=patient)

    def size(self) -> int:
        """Bytes of the file of this name. Raises FileNotFoundError if there is none."""

        def ask(system: Any, path: str) -> int:
            with system.open_input_file(path) as file:
                return int(file.size())

        return self._do("read", ask)

    def remove(self) -> None:
        """Remove the folder and all that is below it, if it is there."""

        def delete(system: Any, path: str) -> None:
            with suppress(FileNotFoundError):
                system.delete_dir(path)

        self._do("written", delete)

    def _do(self, what: str, work: Callable[..., T], *args: Any, patient: bool = True) -> T:
        """`work` with the file system and the path there; repeated while its failure may pass."""
        try:
            system, root = connect(self.root)
            path = f"{root}/{self.path}".rstrip("/")
            return (
                _RETRIES.call(work, system, path, *args) if patient else work(system, path, *args)
            )
        except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            if isinstance(error, FileNotFoundError) and what == "read":
                raise
            raise StorageError(f"{self}: cannot be {what}: {one_line(error)}") from error


Folder = Path | RemoteDirectory


@cache
def connect(root: str) -> tuple[Any, str]:
    """The file system behind a URI, and the path in it."""
    from pyarrow import fs  # 0.3 s, which a folder of this machine does not need

    if root.startswith("gs:"):  # S3 gives up after some seconds by itself
        root += f"{'&' if '?' in root else '?'}retry_limit_seconds={MAX_PAUSE_SECONDS}"
    return fs.FileSystem.from_uri(root)


def upload(system: Any, path: str, source: Path) -> None:
    """Under its name only when it is whole: an object store does so; a file system renames."""
    from pyarrow import fs

    local = isinstance(system, fs.LocalFileSystem)
    target = f"{path}.{uuid.uuid4().hex}" if local else path
    if local:
        system.create_dir(path.rpartition("/")[0], recursive=True)
    fs.copy_files(
        str(source),
        target,
        source_filesystem=fs.LocalFileSystem(),
        destination_filesystem=system,
        chunk_size=CHUNK_BYTES,
    )
    if local:
        system.move(target, path)


def download(system: Any, path: str, target: Path) -> None:
    """Copy a file to this machine."""
    from pyarrow import fs

    fs.copy_files(
        path,
        str(target),
        source_filesystem=system,
        destination_filesystem=fs.LocalFileSystem(),
        chunk_size=CHUNK_BYTES,
    )


def delete_file(system: Any, path: str) -> None:
    """Remove a file."""
    system.delete_file(path)


def _is_transient(error: BaseException) -> bool:
    """Errors of this machine have a number."""
    return isinstance(error, OSError) and error.errno is None and not REFUSED.search(str(error))


_RETRIES = RetryPolicy(
    _is_transient,
    max_pause_seconds=MAX_PAUSE_SECONDS,
    max_seconds=PATIENCE_SECONDS,
    name="storage",
)
