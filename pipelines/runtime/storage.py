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
import logging
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import tenacity
from filelock import FileLock

from pipelines.runtime.errors import ConfigError, PipelineError, StorageError, one_line

DIGESTS = "SHA256SUMS"
"""The file, in the format of sha256sum, that vouches for those beside it."""
OWNER = "owner"
"""The object that names whoever writes into a shared folder now."""
PATIENCE_SECONDS = 600
"""How long an object store may be away before it counts as a disk that refuses."""
MOST_SECONDS_BETWEEN_TRIES = 10
CHUNK_BYTES = 1 << 24
URI = re.compile(
    r"((s3|gs)://[\w.-]+|file:///[\w.=+-]+)(/[\w.=+-]+)*/?"
    r"(\?(endpoint_override|region|scheme)=[\w.:-]+(&(endpoint_override|region|scheme)=[\w.:-]+)*)?",
    re.ASCII,
)
REFUSED = re.compile(
    r"ACCESS_DENIED|NO_SUCH_|INVALID_|SIGNATURE|NOT_FOUND|EXPIRED|DENIED|UNAUTHENTICATED"
    r"|HTTP status 4(?!08|29)"
)
"""What a store says that would say it again. All else that is not of this machine may pass."""

T = TypeVar("T")


def check(text: str) -> None:
    """Raise ValueError, which does not repeat it, if a URI is none that this project can use."""
    if "://" in text and not URI.fullmatch(text):
        raise ValueError(
            "expected a folder, or a URI like s3://bucket/folder?region=eu-west-1 (s3, gs, file; "
            "endpoint_override, region, scheme) without user, password or key: these are "
            "read from the environment, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )


@dataclass(frozen=True)
class Storage:
    """The place that `storage` names."""

    folder: "Folder"

    @classmethod
    def of(cls, text: str) -> "Storage":
        """From the configuration's text. Raises ConfigError if it cannot be one."""
        try:
            check(text)
        except ValueError as error:
            raise ConfigError(f"storage: {error}") from None
        # absolute: Ray's processes work elsewhere
        return cls(Shared(text) if "://" in text else Path(text).absolute())

    @property
    def is_local(self) -> bool:
        """Whether it is a plain path, which other nodes do not see, or not as the same folder."""
        return isinstance(self.folder, Path)

    @contextmanager
    def marked(self) -> Iterator[str]:
        """A tiny file where a URI points to, for the time of a block; its name, for `probe`.

        Raises ConfigError, within seconds, if it cannot be put there.
        """
        assert isinstance(self.folder, Shared)
        self.probe()  # who writes at once would wait long for a store that is not there
        name = f"mark-{uuid.uuid4().hex}"
        file = self.folder / name
        file.write_text(name)
        try:
            yield name
        finally:
            file._do("written", _delete_file)

    def probe(self, mark: str | None = None) -> None:
        """Write, read and remove a tiny object where a URI points to, from this very process; find
        the `mark` that another node has left.

        Raises ConfigError, within seconds, if that fails. A folder of this machine is made, and
        found to be unusable, where it is first needed.
        """
        if isinstance(self.folder, Path):
            return
        name = f"probe-{uuid.uuid4().hex}"
        file = self.folder / name
        try:
            file.write_text(name, patient=False)
            found = file.read_text(patient=False)
            file._do("written", _delete_file, patient=False)
            marked = mark is None or (self.folder / mark).exists()
        except (StorageError, FileNotFoundError) as error:
            raise ConfigError(f"storage: {error}") from None
        if found != name:
            raise ConfigError(f"storage: {self.folder}: what is written there is not read back")
        if not marked:
            raise ConfigError(f"storage: {self.folder} is another folder than on the head node")


@dataclass(frozen=True)
class Shared:
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

    def __truediv__(self, name: str) -> "Shared":
        return Shared(self.root, f"{self.path}/{name}".strip("/"))

    def __str__(self) -> str:
        place, mark, options = self.root.partition("?")
        return "/".join(filter(None, [place.rstrip("/"), self.path])) + mark + options

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]

    def claimed(self) -> "Shared":
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
            (self / name)._do("written", _upload, folder / name)

    def get(self, folder: Path, *names: str) -> None:
        """Copy files into a folder of this machine. Raises FileNotFoundError if one is missing."""
        for name in names:
            (self / name)._do("read", _download, folder / name)

    def write_text(self, text: str, *, patient: bool = True) -> None:
        """Write a small file of this name."""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "text"
            path.write_text(text)
            self._do("written", _upload, path, patient=patient)

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
            system, root = _connect(self.root)
            path = f"{root}/{self.path}".rstrip("/")
            return (_patiently(work) if patient else work)(system, path, *args)
        except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            if isinstance(error, FileNotFoundError) and what == "read":
                raise
            raise StorageError(f"{self}: cannot be {what}: {one_line(error)}") from error


Folder = Path | Shared


@dataclass(frozen=True)
class SharedFile:
    """A file in shared storage, and what is to be found in it: a handle for any node."""

    place: Shared
    sha256: str
    size: int

    def fetch(self, path: Path) -> None:
        """Copy it to a path of this machine. Raises PipelineError if it is not what it was."""
        try:
            self.place._do("read", _download, path)
        except FileNotFoundError:
            raise PipelineError(f"{self.place}: is gone") from None
        if not self.is_copied_to(path):
            raise PipelineError(f"{self.place}: damaged: size or sha256 is not what it was")

    def is_copied_to(self, path: Path) -> bool:
        """Whether a file of this machine has its bytes."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        return _sha256(path, path.stat().st_mtime_ns) == self.sha256


File = Path | SharedFile


def put_file(path: Path, place: Shared) -> None:
    """Upload a file, and behind it its digest as NAME.sha256: only then it is there."""
    place._do("written", _upload, path)
    _digest_of(place).write_text(f"{digest(path)}  {place.name}\n")


def file_at(place: Folder) -> File | None:
    """The file of that name in storage; None if it is not there, or not yet."""
    if isinstance(place, Path):
        return place if place.exists() else None
    try:
        return SharedFile(place, _digest_of(place).read_text()[:64], place.size())
    except FileNotFoundError:
        return None


def _digest_of(place: Shared) -> Shared:
    return Shared(place.root, f"{place.path}.sha256")


def size_of(file: File) -> int:
    """Bytes of a file in storage."""
    return file.stat().st_size if isinstance(file, Path) else file.size


def uri_of(file: File) -> str:
    """The URI of a file in storage."""
    return file.as_uri() if isinstance(file, Path) else str(file.place)


def here(file: File) -> Path:
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
def borrowed(file: File) -> Iterator[Path]:
    """The file itself, or a copy on this machine for the time of a block."""
    if isinstance(file, Path):
        yield file
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / file.place.name
        file.fetch(path)
        yield path


def exists(text: str) -> bool:
    """Whether a path or URI names something that is there."""
    folder = Storage.of(text).folder
    return folder.exists()


def remove(folder: Folder) -> None:
    """Remove a folder that is no longer needed. What cannot be removed is in nobody's way."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with suppress(StorageError):
        folder.remove()


def digest(path: Path) -> str:
    """The sha256 of a file of this machine."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _sha256(path: Path, mtime_ns: int) -> str:
    """Read once by each process, as long as the file is not touched."""
    return digest(path)


@cache
def _connect(root: str) -> tuple[Any, str]:
    """The file system behind a URI, and the path in it."""
    from pyarrow import fs  # 0.3 s, which a folder of this machine does not need

    if root.startswith("gs:"):  # S3 gives up after some seconds by itself
        root += f"{'&' if '?' in root else '?'}retry_limit_seconds={MOST_SECONDS_BETWEEN_TRIES}"
    return fs.FileSystem.from_uri(root)


def _upload(system: Any, path: str, source: Path) -> None:
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


def _download(system: Any, path: str, target: Path) -> None:
    from pyarrow import fs

    fs.copy_files(
        path,
        str(target),
        source_filesystem=system,
        destination_filesystem=fs.LocalFileSystem(),
        chunk_size=CHUNK_BYTES,
    )


def _delete_file(system: Any, path: str) -> None:
    system.delete_file(path)


def _may_pass(error: BaseException) -> bool:
    """Errors of this machine have a number."""
    return isinstance(error, OSError) and error.errno is None and not REFUSED.search(str(error))


def _tell(state: tenacity.RetryCallState) -> None:
    if state.attempt_number == 1:
        error = state.outcome and state.outcome.exception()
        logging.getLogger(__name__).warning("storage: %s; trying again", one_line(error))


_patiently = tenacity.retry(
    retry=tenacity.retry_if_exception(_may_pass),
    wait=tenacity.wait_random_exponential(max=MOST_SECONDS_BETWEEN_TRIES),
    stop=tenacity.stop_after_delay(PATIENCE_SECONDS),
    before_sleep=_tell,
    reraise=True,
)
