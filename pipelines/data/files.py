"""Files by a path, folder or glob, and their bytes in chunks; used by the corpora of files."""

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipelines.console.errors import ConfigError, Problem

CHUNK_BYTES = 1 << 22


def find_files(pattern: str, *, key: str) -> list[Path]:
    """The file, those below a folder or those that match a glob, in the order of their paths.

    Raises ConfigError if there is none; `key` is the configuration key of the pattern.
    """
    root = Path(pattern)
    found = sorted(root.rglob("*")) if root.is_dir() else map(Path, sorted(glob.glob(pattern)))  # noqa: PTH207
    paths = [path for path in found if path.is_file()]
    if not paths:
        raise ConfigError(Problem(f"{pattern}: no such file, folder or glob match", key))
    return paths


def read_files(paths: Iterable[Path]) -> Iterator[bytes]:
    """The bytes of several files in turn, in chunks."""
    for path in paths:
        with path.open("rb") as file:
            yield from read_chunks(file)


def read_chunks(file: Any) -> Iterator[bytes]:
    """The bytes of an open file, in chunks."""
    return iter(lambda: file.read(CHUNK_BYTES), b"")
