"""Texts by name: each is a function that yields its bytes, registered by `@corpus`.

What a name means is all that is here; how a text is measured, split and kept is not.
"""

import glob
import gzip
import hashlib
import sysconfig
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, TypeVar

from pipelines.runtime.errors import ConfigError, one_line

CHUNK_BYTES = 1 << 22

Read = Callable[..., Iterable[bytes]]
"""From `data.path`, where it takes one, to the bytes in chunks of any length."""
R = TypeVar("R", bound=Read)


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


@dataclass(frozen=True)
class Source:
    """A registered corpus."""

    read: Read
    known: Original | None = None
    """What the text is, if that is known without reading it."""

    @property
    def takes_path(self) -> bool:
        """Whether `data.path` may be given: the function has a parameter."""
        return self._path is not None

    @property
    def needs_path(self) -> bool:
        """Whether `data.path` must be given: the parameter has no default."""
        return self._path is not None and self._path.default is Parameter.empty

    @property
    def _path(self) -> Parameter | None:
        return next(iter(signature(self.read).parameters.values()), None)


CORPORA: dict[str, Source] = {}
"""Every corpus by its name in `data.corpus`."""


def corpus(name: str, *, known: Original | None = None) -> Callable[[R], R]:
    """Register a function as the corpus `name`. Raises ValueError if the name is taken.

    `data.path` is its argument: it must be given if the parameter has no default, and cannot be if
    there is no parameter. An OSError that it raises is told as bad input.
    """
    if name in CORPORA:
        raise ValueError(f"the corpus {name} is registered already")

    def register(read: R) -> R:
        CORPORA[name] = Source(read, known)
        return read

    return register


@corpus("python-stdlib")
def python_stdlib() -> Iterator[bytes]:
    """The running interpreter's library without its tests, modules in the order of a hash."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    names = [
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if not skipped & set(path.relative_to(root).parts)
    ]
    for name in sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest()):
        yield (root / name).read_bytes()


ENWIK8 = Original(
    name="enwik8",
    url="http://mattmahoney.net/dc/enwik8.zip",
    zip_bytes=36_445_475,
    text_bytes=100_000_000,
    sha256="2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
)


@corpus("enwik8", known=ENWIK8)
def enwik8(path: str = "data") -> Iterator[bytes]:
    """The first 100 MB of the English Wikipedia of 2006-03-03."""
    return read_original(ENWIK8, Path(path))


@corpus("files")
def files(path: str) -> Iterator[bytes]:
    """The user's files in the order of their paths."""
    return read_files(find_files(path, key="data.path"))


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
            yield from _chunks(file)


def read_original(original: Original, folder: Path) -> Iterator[bytes]:
    """A published text from a folder, downloaded into it where it is missing.

    Whether it is the text is known at its end: what was made of it by then counts only if the
    iterator ends. Raises ConfigError if a file there is something else, PipelineError if the
    download fails.
    """
    path = _find(original, folder)
    digest, size = hashlib.sha256(), 0
    try:
        with _OPENERS[path.suffix](path, original.name) as file:
            for chunk in _chunks(file):
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


def _find(original: Original, folder: Path) -> Path:
    """The text's file, with the size it must have where that is known."""
    if folder.is_file():
        raise ConfigError(f"data.path: {one_line(folder)}: expected a folder, got a file")
    paths = [folder / f"{original.name}{suffix}" for suffix in _OPENERS]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        from pipelines.runtime.download import download  # which few commands need

        path = folder / f"{original.name}.zip"
        download(original.url, path, original.zip_bytes)
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


def _chunks(file: Any) -> Iterator[bytes]:
    return iter(lambda: file.read(CHUNK_BYTES), b"")


_OPENERS: dict[str, Callable[[Path, str], Any]] = {
    "": lambda path, _: path.open("rb"),
    ".gz": lambda path, _: gzip.GzipFile(path),
    ".zip": lambda path, name: zipfile.ZipFile(path).open(name),  # noqa: SIM115
}
