"""pyarrow file systems: connecting with the environment's credentials, and copying one file.

Used by `remote.RemoteDirectory`. Credentials are never part of a URI: pyarrow reads them from the
environment or from the files that it names.
"""

import hashlib
import uuid
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipelines.compat.pyarrow import is_transient
from pipelines.console.retries import RetryPolicy
from pipelines.console.secrets import environment

MAX_UNAVAILABLE_SECONDS = 600
"""Longest time that an object store may be unavailable before an operation fails."""
MAX_PAUSE_SECONDS = 10
CHUNK_BYTES = 1 << 24
CREDENTIAL_VARIABLES = ("AWS_", "GOOGLE_", "CLOUDSDK_", "HOME")
"""Beginnings of the environment variables that decide with which credentials pyarrow connects."""


def connect(uri: str) -> tuple[Any, str]:
    """The file system of a URI, and the path in it.

    Connections are reused within the process while the environment's credentials are the same.
    """
    found = sorted(
        item for item in environment().items() if item[0].startswith(CREDENTIAL_VARIABLES)
    )
    return _connect(uri, hashlib.sha256(repr(found).encode()).hexdigest())


@lru_cache(maxsize=16)
def _connect(uri: str, credentials_digest: str) -> tuple[Any, str]:
    """Connect; the digest is only part of the cache's key: pyarrow reads the environment itself.

    The key holds no secret, which would stay in memory after the environment has changed.
    """
    from pyarrow import fs  # 0.3 s, which a folder of this machine does not need

    if uri.startswith("gs:"):  # the S3 client limits its own retries to some seconds
        uri += f"{'&' if '?' in uri else '?'}retry_limit_seconds={MAX_PAUSE_SECONDS}"
    return fs.FileSystem.from_uri(uri)


def upload(system: Any, path: str, source: Path) -> None:
    """Copy a file of this machine to a path, where it appears only once it is complete.

    An object store works that way; in a mounted file system the copy is renamed into place.
    """
    from pyarrow import fs

    mounted = isinstance(system, fs.LocalFileSystem)
    target = f"{path}.{uuid.uuid4().hex}" if mounted else path
    if mounted:
        system.create_dir(path.rpartition("/")[0], recursive=True)
    fs.copy_files(
        str(source),
        target,
        source_filesystem=fs.LocalFileSystem(),
        destination_filesystem=system,
        chunk_size=CHUNK_BYTES,
    )
    if mounted:
        system.move(target, path)


def download(system: Any, path: str, target: Path) -> None:
    """Copy a file at a path to this machine."""
    from pyarrow import fs

    fs.copy_files(
        path,
        str(target),
        source_filesystem=system,
        destination_filesystem=fs.LocalFileSystem(),
        chunk_size=CHUNK_BYTES,
    )


RETRIES = RetryPolicy(
    is_transient,
    max_pause_seconds=MAX_PAUSE_SECONDS,
    max_seconds=MAX_UNAVAILABLE_SECONDS,
    name="storage",
)
