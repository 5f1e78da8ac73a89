"""The configured place of storage: a folder of this machine, or a URI of one that every node sees.

A plain path becomes a `Path`; a URI becomes a `RemoteDirectory`. Keys and passwords are never part
of a URI: pyarrow reads them from the environment. Used by the configuration, the commands and the
check of the cluster's nodes.
"""

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from pipelines.console.errors import ConfigError, Problem, StorageError
from pipelines.console.text import is_text, one_line
from pipelines.storage.remote import Folder, RemoteDirectory

URI = re.compile(
    r"((s3|gs)://[\w.-]+|file:///[\w.=+-]+)(/[\w.=+-]+)*/?"
    r"(\?(endpoint_override|region|scheme)=[\w.:-]+(&(endpoint_override|region|scheme)=[\w.:-]+)*)?",
    re.ASCII,
)
ONE_SLASH = re.compile(r"(s3|gs|file):/(?!/)")
"""How the beginning of a URI is mistyped, which would be a folder of that name."""


def with_home(path: str) -> str:
    """A path with the user's home in place of a leading `~`, as a shell writes it.

    Raises ValueError for the home of another user, or a file of such a name.
    """
    if path != "~" and not path.startswith("~/"):
        if path.startswith("~"):
            raise ValueError(f"expected ~/... or a whole path, or ./{path} for one of that name")
        return path
    return str(Path(path).expanduser())


def check_uri(text: str) -> None:
    """Raise ValueError for an unsupported URI, without repeating it: it may hold a key."""
    if ("://" in text and not URI.fullmatch(text)) or ONE_SLASH.match(text):
        raise ValueError(
            "expected a folder, or a URI like s3://bucket/folder?region=eu-west-1 (s3, gs, file; "
            "endpoint_override, region, scheme) without user, password or key: these are "
            "read from the environment, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )


@dataclass(frozen=True)
class Storage:
    """The place that the configuration key `storage` names."""

    folder: Folder

    @classmethod
    def of(cls, text: str, *, key: str = "storage") -> "Storage":
        """The storage of a path or URI, that `key` names. Raises ConfigError for an unsupported
        URI."""
        try:
            text = _checked(text)
        except ValueError as error:
            raise ConfigError(Problem(one_line(error), key)) from None
        if "://" in text:
            return cls(RemoteDirectory(text))
        folder = Path(text).absolute()  # Ray's processes have other working directories
        if not is_text(str(folder)):
            raise ConfigError(Problem(f"{one_line(folder)}: expected a path in UTF-8", key))
        return cls(folder)

    @property
    def is_local(self) -> bool:
        """Whether it is a plain path, which other nodes may not see as the same folder."""
        return isinstance(self.folder, Path)

    @contextmanager
    def write_sentinel(self) -> Iterator[str]:
        """A small file in remote storage until the end of the block; yields its name for `probe`.

        Raises ConfigError, within seconds, if it cannot be written.
        """
        assert isinstance(self.folder, RemoteDirectory)
        self.probe()  # fails within seconds; the write below would retry for minutes
        name = f"sentinel-{uuid.uuid4().hex}"
        file = self.folder / name
        file.write_text(name)
        try:
            yield name
        finally:
            file.delete_file()

    def probe(self, sentinel: str | None = None) -> None:
        """Write, read and delete a small file in remote storage, from this process.

        Also look for the `sentinel` that another node has written. Raises ConfigError, within
        seconds, if any of it fails. Does nothing for a folder of this machine, which is created at
        its first use.
        """
        if isinstance(self.folder, Path):
            return
        name = f"probe-{uuid.uuid4().hex}"
        file = self.folder / name
        try:
            file.write_text(name, retry=False)
            content = file.read_text(retry=False)
            file.delete_file(retry=False)
            same = sentinel is None or (self.folder / sentinel).exists()
        except (StorageError, FileNotFoundError) as error:
            raise ConfigError(Problem(str(error), "storage")) from None
        if content != name:
            message = f"{self.folder}: what is written there is not read back"
            raise ConfigError(Problem(message, "storage"))
        if not same:
            message = f"{self.folder} is another folder than on the head node"
            raise ConfigError(Problem(message, "storage"))


def exists(text: str) -> bool:
    """Whether a path or URI names an existing file or folder."""
    return Storage.of(text).folder.exists()


def storage_folder(text: str) -> Folder:
    """The folder of a path or URI. Raises ConfigError for an unsupported URI."""
    return Storage.of(text).folder


def local_storage(text: str) -> Path | None:
    """The folder of this machine that a path or a file:// URI names; None for an object store."""
    folder = storage_folder(text)
    if isinstance(folder, Path):
        return folder
    path = folder.root.partition("?")[0].removeprefix("file://")
    return Path(path) if path.startswith("/") else None


def _checked(text: str) -> str:
    if not text.strip():
        raise ValueError("expected a folder or a URI, got no text")
    check_uri(text)
    return with_home(text)


Place = Annotated[str, AfterValidator(_checked)]
"""A path, or a URI without secrets."""
