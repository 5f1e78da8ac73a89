"""Text as bytes: where it comes from, how it is split and kept, how batches are drawn from it.

A corpus lies in storage under its fingerprint, in three files that are memory-mapped; from shared
storage each node takes a copy. The test split lies apart: nothing that training or the search
receives is a handle to it.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipelines.console.errors import ConfigError
from pipelines.console.text import one_line
from pipelines.console.updates import OutputMode
from pipelines.data.config import DataConfig
from pipelines.data.corpora import CORPORA
from pipelines.data.files import find_files, read_files
from pipelines.data.fingerprint import PARTS, Corpus


class ChunkBuffer:
    """A stream of chunks from which at most n bytes are taken at a time; none at its end."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def take(self, size: int) -> memoryview:
        """At most `size` bytes; none at the end."""
        if size and not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        part, self._rest = self._rest[:size], self._rest[size:]
        return part


class CorpusReader:
    """A corpus read through once; at its end it is known what it is."""

    def __init__(self, config: DataConfig, mode: OutputMode = OutputMode.TEXT) -> None:
        """`mode`: how a download is shown."""
        self._mode = mode
        self._config, self._digest = config, hashlib.sha256()
        self._lengths: list[int] = []

    def __iter__(self) -> Iterator[bytes]:
        """The chunks, none of them empty."""
        try:
            for text in _texts(self._config, self._mode):
                self._lengths.append(0)
                for chunk in filter(None, text):
                    self._digest.update(chunk)
                    self._lengths[-1] += len(chunk)
                    yield chunk
        except OSError as error:
            key = ("path", "validation_path", "test_path")[max(0, len(self._lengths) - 1)]
            name = error.filename or getattr(self._config, key) or self._config.corpus
            reason = error.strerror or error
            raise ConfigError(f"data.{key}: {one_line(name)}: {reason}") from None

    @property
    def corpus(self) -> Corpus:
        """What was read."""
        return Corpus.of(self._digest.hexdigest(), self._lengths)


def _texts(config: DataConfig, mode: OutputMode) -> list[Iterable[bytes]]:
    """The one text that is cut, or the three that were given."""
    if config.validation_path is None:
        source = CORPORA[config.corpus]
        source.fetch(config.path, mode)
        return [source.read() if config.path is None else source.read(config.path)]
    keys = {key: getattr(config, key) for key in PARTS.values()}
    parts = {f"data.{key}": find_files(path, key=f"data.{key}") for key, path in keys.items()}
    _refuse_overlap(parts)
    return [read_files(paths) for paths in parts.values()]


def _refuse_overlap(parts: dict[str, list[Path]]) -> None:
    """What is trained on tells nothing when tested on."""
    seen: dict[tuple[int, int], str] = {}
    for key, paths in parts.items():
        for path in paths:
            status = path.stat()  # a link to a file is that file
            first = seen.setdefault((status.st_dev, status.st_ino), key)
            if first != key:
                raise ConfigError(
                    f"{key}: {one_line(path)} is in {first} too; expected each file in one of them"
                )
