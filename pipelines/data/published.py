"""Published texts: found in a folder or downloaded into it, and checked by size and sha256.

Used by the corpora whose bytes are known before they are read, such as enwik8.
"""

import gzip
import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import counted
from pipelines.console.updates import OutputMode
from pipelines.data.files import read_chunks


@dataclass(frozen=True)
class PublishedText:
    """A text that never changes: where it is published, and how a copy of it is checked."""

    name: str
    """Of the file; NAME.zip and NAME.gz are tried too."""
    url: str
    """Of the zip file."""
    zip_bytes: int
    """Size of the zip file."""
    text_bytes: int
    """Size of the text."""
    sha256: str
    """Of the text."""


def read_published(text: PublishedText, folder: Path) -> Iterator[bytes]:
    """The bytes of a published text from a folder, in chunks; downloaded first if it is missing.

    The digest is checked at the end: what is made of the chunks counts only if the iterator ends
    without an error. Raises ConfigError if a file in the folder is another text, PipelineError if
    the download fails.
    """
    path = find_published(text, folder)
    digest, size = hashlib.sha256(), 0
    try:
        with _OPENERS[path.suffix](path, text.name) as file:
            for chunk in read_chunks(file):
                digest.update(chunk)
                size += len(chunk)
                _require(size <= text.text_bytes, path, f"more than {text.text_bytes:,} bytes")
                yield chunk
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, KeyError) as error:
        _require(False, path, str(error))
    _require(size == text.text_bytes, path, f"{counted(size, 'byte')} of {text.text_bytes:,}")
    _require(digest.hexdigest() == text.sha256, path, f"sha256 {digest.hexdigest()}")


def find_published(text: PublishedText, folder: Path, mode: OutputMode = OutputMode.TEXT) -> Path:
    """The file of a published text in a folder, downloaded if it is missing.

    Raises ConfigError for a file whose size is wrong, where its size is known without reading it.
    """
    path = local_file(text, folder)
    if path is None:
        from pipelines.data.download import download  # its libraries are needed by few commands

        path = folder / f"{text.name}.zip"
        download(text.url, path, text.zip_bytes, mode)
    size = path.stat().st_size
    expected = {"": text.text_bytes, ".zip": text.zip_bytes}.get(path.suffix, size)
    _require(size == expected, path, f"{counted(size, 'byte')}, expected {expected:,}")
    return path


def local_file(text: PublishedText, folder: Path) -> Path | None:
    """The file of a published text in a folder; None if there is none."""
    if folder.is_file():
        message = f"{folder}: expected a folder, got a file"
        raise ConfigError(Problem(message, "data.path"))
    paths = [folder / f"{text.name}{suffix}" for suffix in _OPENERS]
    return next((path for path in paths if path.is_file()), None)


def _require(valid: bool, path: Path, found: str) -> None:
    """Raise ConfigError unless a file is the published one."""
    if not valid:
        message = f"not the {path.stem} that is published: {found}; delete it to download it again"
        raise ConfigError(Problem(message, source=str(path.absolute())))


_OPENERS: dict[str, Callable[[Path, str], Any]] = {
    "": lambda path, _: path.open("rb"),
    ".gz": lambda path, _: gzip.GzipFile(path),
    ".zip": lambda path, name: zipfile.ZipFile(path).open(name),  # noqa: SIM115
}
"""By the suffix of a file: from its path and the text's name to the open text."""
