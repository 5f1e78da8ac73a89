"""Texts by name: each is a function that yields its bytes, registered by `@corpus`.

What a name means is all that is here; how a text is measured, split and kept is not.
"""

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipelines.console.errors import ConfigError
from pipelines.console.text import one_line

CHUNK_BYTES = 1 << 22


def find_files(pattern: str, *, key: str) -> list[Path]:
    """The file, those below a folder or those of a glob, in the order of their paths.

    Raises ConfigError, naming the key that the pattern is from, if there is none.
    """
    root = Path(pattern)
    found = sorted(root.rglob("*")) if root.is_dir() else map(Path, sorted(glob.glob(pattern)))  # noqa: PTH207
    paths = [path for path in found if path.is_file()]
    if not paths:
        raise ConfigError(f"{key}: {one_line(pattern)}: no such file, folder or glob match")
    return paths


def read_files(paths: Iterable[Path]) -> Iterator[bytes]:
    """The bytes of files, one after the other."""
    for path in paths:
        with path.open("rb") as file:
            yield from read_chunks(file)


def read_chunks(file: Any) -> Iterator[bytes]:
    """The bytes of an open file."""
    return iter(lambda: file.read(CHUNK_BYTES), b"")
