"""The registry of corpora: each is a function that yields the bytes of a text.

`@corpus` registers a function under the name that `data.corpus` takes. Used by the section `data`
and by the reader of a corpus.
"""

import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from inspect import Parameter, signature
from pathlib import Path
from typing import TypeVar

from pipelines.console.updates import OutputMode
from pipelines.data.files import find_files, read_files
from pipelines.data.published import PublishedText, find_published, local_file, read_published

Read = Callable[..., Iterable[bytes]]
"""A function from `data.path`, if it has a parameter, to the bytes in chunks of any length."""
R = TypeVar("R", bound=Read)


@dataclass(frozen=True)
class Source:
    """A registered corpus."""

    read: Read
    published: PublishedText | None = None
    """Size and digest of the text, if they are known without reading it."""

    @property
    def takes_path(self) -> bool:
        """Whether `data.path` may be given: the function has a parameter."""
        return self._path is not None

    @property
    def needs_path(self) -> bool:
        """Whether `data.path` must be given: the parameter has no default."""
        return self._path is not None and self._path.default is Parameter.empty

    def fetch(self, path: str | None, mode: OutputMode) -> None:
        """Download a published text that is missing; nothing for any other text."""
        if self.published is not None and self._path is not None:
            find_published(self.published, self._folder(path), mode)

    def is_missing(self, path: str | None) -> bool:
        """Whether it is a published text that would have to be downloaded."""
        if self.published is None or self._path is None:
            return False
        return local_file(self.published, self._folder(path)) is None

    def _folder(self, path: str | None) -> Path:
        assert self._path is not None
        return Path(self._path.default if path is None else path)

    @cached_property  # thousands of points of a space are checked
    def _path(self) -> Parameter | None:
        return next(iter(signature(self.read).parameters.values()), None)


CORPORA: dict[str, Source] = {}
"""The registered corpora by name."""


def corpus(name: str, *, published: PublishedText | None = None) -> Callable[[R], R]:
    """Register a function as the corpus `name`. Raises ValueError if the name is taken.

    `data.path` is its argument: it must be given if the parameter has no default, and must not be
    given if there is no parameter. An OSError that the function raises is reported as bad input.
    """
    if name in CORPORA:
        raise ValueError(f"the corpus {name} is registered already")

    def register(read: R) -> R:
        CORPORA[name] = Source(read, published)
        return read

    return register


@corpus("python-stdlib")
def python_stdlib() -> Iterator[bytes]:
    """The sources of the running interpreter's standard library without its tests, in the order of
    a hash of their paths."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    names: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = set(folders) - skipped  # site-packages may have a hundred times as many files
        place = Path(folder).relative_to(root)
        names += [(place / name).as_posix() for name in files if name.endswith(".py")]
    for name in sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest()):
        yield (root / name).read_bytes()


ENWIK8 = PublishedText(
    name="enwik8",
    url="http://mattmahoney.net/dc/enwik8.zip",
    zip_bytes=36_445_475,
    text_bytes=100_000_000,
    sha256="2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
)


@corpus("enwik8", published=ENWIK8)
def enwik8(path: str = "data") -> Iterator[bytes]:
    """The first 100 MB of the English Wikipedia of 2006-03-03."""
    return read_published(ENWIK8, Path(path))


@corpus("files")
def files(path: str) -> Iterator[bytes]:
    """The user's files in the order of their paths."""
    return read_files(find_files(path, key="data.path"))
