"""Reading a corpus once: its bytes in chunks, and its fingerprint at the end.

Used by pipelines.data.splits, which measures a corpus and writes its splits.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import one_line, reason_of
from pipelines.console.updates import OutputMode
from pipelines.data.config import DataConfig
from pipelines.data.corpora import CORPORA
from pipelines.data.files import find_files, read_files
from pipelines.data.fingerprint import SPLIT_KEYS, Corpus
from pipelines.storage.digests import sha256_of

COMPRESSED = {
    "gzip": rb"\x1f\x8b\x08",
    "bzip2": rb"BZh[1-9]1AY&SY",
    "xz": rb"\xfd7zXZ\x00",
    "zstd": rb"\x28\xb5\x2f\xfd",
    "zip": rb"PK\x03\x04",
}
"""How a compressed file begins, by its format."""
LONGEST_START = 10
"""Bytes of the longest of them."""


class ChunkBuffer:
    """A stream of chunks that is read in pieces of other sizes, without copying."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def take(self, size: int) -> memoryview:
        """The next bytes, at most `size`; empty at the end of the stream."""
        if size and not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        part, self._rest = self._rest[:size], self._rest[size:]
        return part


class CorpusReader:
    """One pass over a corpus: iterate it for the bytes; `corpus` is then what was read."""

    def __init__(self, config: DataConfig, mode: OutputMode = OutputMode.TEXT) -> None:
        """Read what `config` names; a download is shown as `mode` demands."""
        self._config, self._mode = config, mode
        self._digest = hashlib.sha256()
        self._lengths: list[int] = []
        self._files: int | None = None

    def __iter__(self) -> Iterator[bytes]:
        """The chunks, none of them empty. Raises ConfigError for a file that cannot be read."""
        from pipelines.console.progress import Progress  # with rich, which training does not need

        lines = Progress(self._mode, stderr=True)  # standard output may be JSON
        look = lambda: f"reading the text: {sum(self._lengths) / 1e6:,.0f} MB"  # noqa: E731
        try:
            texts = self._texts()
            with lines.working(look()), lines.watching(look, stage="corpus"):
                yield from self._chunks(texts)
        except OSError as error:
            key = list(SPLIT_KEYS.values())[max(0, len(self._lengths) - 1)]
            name = error.filename or getattr(self._config, key) or self._config.corpus
            message = f"{one_line(name)}: {reason_of(error)}"
            raise ConfigError(Problem(message, f"data.{key}")) from None

    def _chunks(self, texts: list[Iterable[bytes]]) -> Iterator[bytes]:
        for text in texts:
            self._lengths.append(0)
            for chunk in text:
                if part := self._within_limit(chunk):
                    self._digest.update(part)
                    self._lengths[-1] += len(part)
                    yield part
                elif self._is_complete:
                    break

    def _within_limit(self, chunk: bytes) -> bytes:
        """The part of a chunk that belongs to the first `max_bytes` of the text."""
        limit = self._config.max_bytes
        return chunk if limit is None else chunk[: limit - self._lengths[-1]]

    @property
    def _is_complete(self) -> bool:
        """Whether the rest of the text need not be read: a published one is checked at its end."""
        limit, source = self._config.max_bytes, CORPORA[self._config.corpus]
        return self._lengths[-1] == limit and source.published is None

    @property
    def corpus(self) -> Corpus:
        """The corpus that was read; complete at the end of the iteration."""
        return Corpus.of(self._digest.hexdigest(), self._lengths, self._files)

    def _texts(self) -> list[Iterable[bytes]]:
        """The one text of a corpus that is to be split, or the three of its splits."""
        config = self._config
        if config.corpus != "files":
            source = CORPORA[config.corpus]
            source.fetch(config.path, self._mode)
            return [source.read() if config.path is None else source.read(config.path)]
        named = {f"data.{key}": getattr(config, key) for key in SPLIT_KEYS.values()}
        named = {key: path for key, path in named.items() if path is not None}
        with file_search_shown(self._mode):
            files = {key: find_files(path, key=key) for key, path in named.items()}
            _refuse_compressed(files)
            _refuse_overlap(files)
        if config.max_bytes is None:
            self._files = sum(map(len, files.values()))
        return [read_files(paths) for paths in files.values()]


def file_search_shown(mode: OutputMode) -> AbstractContextManager[None]:
    """Shows, if a block takes long, that it looks for the files of a text: there may be many."""
    return work_shown("looking for the files of the text", mode)


def work_shown(text: str, mode: OutputMode) -> AbstractContextManager[None]:
    """Shows a text, with the time, during a block that may take long: of whole splits, too."""
    from pipelines.console.progress import Progress  # with rich, which training does not need

    return Progress(mode, stderr=True).waiting(text, stage="corpus")


def _refuse_compressed(files: dict[str, list[Path]]) -> None:
    """Raise ConfigError for a compressed file: its bytes are not the text that it holds."""
    for key, paths in files.items():
        for path in paths:
            with path.open("rb") as file:
                start = file.read(LONGEST_START)
            for name, pattern in COMPRESSED.items():
                if re.match(pattern, start):
                    message = f"{one_line(path)} is compressed ({name}); expected the text itself"
                    raise ConfigError(Problem(message, key))


def _refuse_overlap(files: dict[str, list[Path]]) -> None:
    """Raise ConfigError for a file in two splits, or a copy: it would measure what was learned."""
    keys: dict[tuple[int, int], str] = {}
    sizes: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    for key, paths in files.items():
        for path in paths:
            status = path.stat()  # of the file that a link points to
            first = keys.setdefault((status.st_dev, status.st_ino), key)
            if first != key:
                message = f"{one_line(path)} is in {first} too; expected each file in one of them"
                raise ConfigError(Problem(message, key))
            sizes[status.st_size].append((key, path))
    for size, alike in sizes.items():
        if size and len({key for key, _ in alike}) > 1:
            _refuse_copies(alike)


def _refuse_copies(alike: list[tuple[str, Path]]) -> None:
    """Raise ConfigError for files of one size in several splits that have the same content."""
    seen: dict[str, tuple[str, Path]] = {}
    for key, path in alike:
        first, other = seen.setdefault(sha256_of(path), (key, path))
        if first != key:
            message = (
                f"{one_line(path)} has the same content as {one_line(other)} in {first}; "
                "expected each text in one of them"
            )
            raise ConfigError(Problem(message, key))
