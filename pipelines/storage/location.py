"""Where corpora, checkpoints and starts are kept: in a folder of this machine, or where every node
sees them.

A plain path is a `Path`: what is written there is renamed into its place, synced and locked. A URI
is a `Shared` folder, in an object store or on a file system that is mounted everywhere. There,
nothing is renamed and nobody waits for a lock: what belongs together gets a name of its own, its
digests follow last, and without them it is not there. Keys and passwords are never part of a URI:
pyarrow reads them from the environment.
"""

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from pipelines.console.errors import ConfigError, StorageError
from pipelines.storage.remote import Folder, RemoteDirectory, delete_file

URI = re.compile(
    r"((s3|gs)://[\w.-]+|file:///[\w.=+-]+)(/[\w.=+-]+)*/?"
    r"(\?(endpoint_override|region|scheme)=[\w.:-]+(&(endpoint_override|region|scheme)=[\w.:-]+)*)?",
    re.ASCII,
)


def check_uri(text: str) -> None:
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
            check_uri(text)
        except ValueError as error:
            raise ConfigError(f"storage: {error}") from None
        # absolute: Ray's processes work elsewhere
        return cls(RemoteDirectory(text) if "://" in text else Path(text).absolute())

    @property
    def is_local(self) -> bool:
        """Whether it is a plain path, which other nodes do not see, or not as the same folder."""
        return isinstance(self.folder, Path)

    @contextmanager
    def marked(self) -> Iterator[str]:
        """A tiny file where a URI points to, for the time of a block; its name, for `probe`.

        Raises ConfigError, within seconds, if it cannot be put there.
        """
        assert isinstance(self.folder, RemoteDirectory)
        self.probe()  # who writes at once would wait long for a store that is not there
        name = f"mark-{uuid.uuid4().hex}"
        file = self.folder / name
        file.write_text(name)
        try:
            yield name
        finally:
            file._do("written", delete_file)

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
            file._do("written", delete_file, patient=False)
            marked = mark is None or (self.folder / mark).exists()
        except (StorageError, FileNotFoundError) as error:
            raise ConfigError(f"storage: {error}") from None
        if found != name:
            raise ConfigError(f"storage: {self.folder}: what is written there is not read back")
        if not marked:
            raise ConfigError(f"storage: {self.folder} is another folder than on the head node")


def exists(text: str) -> bool:
    """Whether a path or URI names something that is there."""
    folder = Storage.of(text).folder
    return folder.exists()


def storage_folder(text: str) -> Folder:
    """The folder that `storage` names, for any process on any node that sees it."""
    return Storage.of(text).folder


def _checked_uri(text: str) -> str:
    check_uri(text)
    return text


Place = Annotated[str, AfterValidator(_checked_uri)]
"""A path, or a URI without secrets."""
