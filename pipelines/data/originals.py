"""Texts by name: each is a function that yields its bytes, registered by `@corpus`.

What a name means is all that is here; how a text is measured, split and kept is not.
"""

import gzip
import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.console.errors import ConfigError
from pipelines.console.text import one_line
from pipelines.console.updates import OutputMode
from pipelines.data.files import read_chunks


@dataclass(frozen=True)
class Original:
    """A text that is published once and for all, and how a copy of it is known to be whole."""

    name: str
    """Of the file; .zip and .gz are tried too."""
    url: str
    """Of the zip."""
    zip_bytes: int
    text_bytes: int
    sha256: str
    """Of the text."""


def read_original(original: Original, folder: Path) -> Iterator[bytes]:
    """A published text from a folder, downloaded into it where it is missing.

    Whether it is the text is known at its end: what was made of it by then counts only if the
    iterator ends. Raises ConfigError if a file there is something else, PipelineError if the
    download fails.
    """
    path = find_original(original, folder)
    digest, size = hashlib.sha256(), 0
    try:
        with _OPENERS[path.suffix](path, original.name) as file:
            for chunk in read_chunks(file):
                digest.update(chunk)
                size += len(chunk)
                _expect(
                    path, size <= original.text_bytes, f"more than {original.text_bytes:,} bytes"
                )
                yield chunk
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, KeyError) as error:
        _expect(path, False, str(error))
    _expect(path, size == original.text_bytes, f"{size:,} bytes of {original.text_bytes:,}")
    _expect(path, digest.hexdigest() == original.sha256, f"sha256 {digest.hexdigest()}")


def find_original(original: Original, folder: Path, mode: OutputMode = OutputMode.TEXT) -> Path:
    """The text's file, downloaded where it is missing, with the size it must have where that is
    known."""
    if folder.is_file():
        raise ConfigError(f"data.path: {one_line(folder)}: expected a folder, got a file")
    paths = [folder / f"{original.name}{suffix}" for suffix in _OPENERS]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        from pipelines.data.download import download  # which few commands need

        path = folder / f"{original.name}.zip"
        download(original.url, path, original.zip_bytes, mode)
    size = path.stat().st_size
    expected = {"": original.text_bytes, ".zip": original.zip_bytes}.get(path.suffix, size)
    _expect(path, size == expected, f"{size:,} bytes, expected {expected:,}")
    return path


def _expect(path: Path, true: bool, found: str) -> None:
    if not true:
        raise ConfigError(
            f"{one_line(path.absolute())}: not the {path.stem} that is published: "
            f"{one_line(found)}; delete it, and it is downloaded"
        )


_OPENERS: dict[str, Callable[[Path, str], Any]] = {
    "": lambda path, _: path.open("rb"),
    ".gz": lambda path, _: gzip.GzipFile(path),
    ".zip": lambda path, name: zipfile.ZipFile(path).open(name),  # noqa: SIM115
}
