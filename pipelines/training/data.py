"""Text as bytes: where it comes from, how it is split and kept, how batches are drawn from it.

A corpus lies in storage under its fingerprint, in three files that are memory-mapped; from shared
storage each node takes a copy. The test split lies apart: nothing that training or the search
receives is a handle to it.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.runtime.config import DataConfig
from pipelines.runtime.corpora import CORPORA, find_files, read_files
from pipelines.runtime.errors import ConfigError, PipelineError, one_line
from pipelines.runtime.storage import File, Folder, file_at, here, put_file, size_of

Bytes = NDArray[np.uint8]
HELD_OUT = 0.05
"""Share of a text without held-out files in each of the validation and test splits."""
PARTS = {"train": "path", "validation": "validation_path", "test": "test_path"}
"""The key of `data` that each split is read from if the held-out files are given."""


@dataclass(frozen=True)
class Corpus:
    """What a corpus is, before anything of it is written."""

    fingerprint: str
    """32 hex digits that stand for all its bytes and where they are cut."""
    sizes: dict[str, int]
    """Bytes of each split, in the order of the text."""

    @classmethod
    def of(cls, sha256: str, lengths: Sequence[int]) -> "Corpus":
        """From the digest of all bytes and their number: in one text, or in each of three."""
        if len(lengths) == 1:  # is named by its bytes alone
            held_out = int(lengths[0] * HELD_OUT)
            lengths = [lengths[0] - 2 * held_out, held_out, held_out]
        else:
            sha256 = hashlib.sha256(f"{sha256} {lengths}".encode()).hexdigest()
        return cls(sha256[:32], dict(zip(PARTS, lengths, strict=True)))


@dataclass(frozen=True)
class Development:
    """The files that training and the search may read, for any node."""

    train: File
    validation: File


def measure(config: DataConfig, *, seq_len: int) -> Corpus:
    """Read a corpus through, writing nothing; not even that if it is known what it is.

    Raises ConfigError if it is missing or too short.
    """
    if known := CORPORA[config.corpus].known:
        corpus = Corpus.of(known.sha256, [known.text_bytes])
    else:
        reading = _Reading(config)
        for _ in reading:
            pass
        corpus = reading.corpus
    _require_windows(config, corpus, seq_len)
    return corpus


def _require_windows(config: DataConfig, corpus: Corpus, seq_len: int) -> None:
    if config.validation_path is None and corpus.sizes["test"] <= seq_len:
        raise ConfigError(
            f"data: the corpus has {sum(corpus.sizes.values()):,} bytes; expected at least "
            f"{int((seq_len + 1) / HELD_OUT) + 1:,} for splits of 90/5/5 % and "
            f"train.seq_len = {seq_len}"
        )
    for split, size in corpus.sizes.items():
        if size <= seq_len:
            raise ConfigError(
                f"data.{PARTS[split]}: {size:,} bytes; expected more than train.seq_len = {seq_len}"
            )


def prepare(config: DataConfig, corpus: Corpus, storage: Folder) -> None:
    """Write the splits of a measured corpus into storage, unless they are there.

    Raises ConfigError, and keeps nothing, if the text is another one by now.
    """
    found = kept(storage, corpus.fingerprint)
    if found and all(size_of(file) == corpus.sizes[split] for split, file in found.items()):
        return
    if isinstance(storage, Path):
        _prepare_here(config, corpus, storage)
        return
    with tempfile.TemporaryDirectory() as scratch:
        _prepare_here(config, corpus, Path(scratch))
        for name in _names(corpus.fingerprint).values():
            put_file(Path(scratch) / name, storage / name)


def _prepare_here(config: DataConfig, corpus: Corpus, storage: Path) -> None:
    paths = {split: storage / name for split, name in _names(corpus.fingerprint).items()}
    (storage / "corpora").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=storage / "corpora") as scratch:
        reading = _Reading(config)
        chunks = _Chunks(iter(reading))
        for split, size in corpus.sizes.items():
            _write(Path(scratch) / split, chunks, size)
        if chunks.take(1) or reading.corpus != corpus:
            raise ConfigError(
                "data: the text changed while it was read; run the same command again"
            )
        for split, path in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            (Path(scratch) / split).replace(path)


def development(storage: Folder, fingerprint: str) -> Development:
    """The train and validation splits of a prepared corpus."""
    names = _names(fingerprint)
    return Development(_file(storage / names["train"]), _file(storage / names["validation"]))


def sealed_test(storage: Folder, fingerprint: str) -> File:
    """The test split: for the evaluation of a finished candidate and nothing else."""
    return _file(storage / _names(fingerprint)["test"])


def kept(storage: Folder, fingerprint: str) -> dict[str, File] | None:
    """The splits of a corpus in the order of the text; None unless all are in storage."""
    found = {split: file_at(storage / name) for split, name in _names(fingerprint).items()}
    files = {split: file for split, file in found.items() if file is not None}
    return files if len(files) == len(found) else None


def _file(place: Folder) -> File:
    """What is read where it lies need not be there yet."""
    file = place if isinstance(place, Path) else file_at(place)
    if file is None:
        raise PipelineError(f"{place}: is gone; run the same command again")
    return file


def _names(fingerprint: str) -> dict[str, str]:
    """Where each split lies in storage, in the order of the text."""
    return {
        "train": f"corpora/{fingerprint}/train.bin",
        "validation": f"corpora/{fingerprint}/validation.bin",
        "test": f"corpora/sealed/{fingerprint}.bin",
    }


def open_bytes(file: File) -> Bytes:
    """A split as a read-only memory map, of this node's copy where it lies elsewhere."""
    return np.memmap(here(file), dtype=np.uint8, mode="r")


class Batches:
    """Training windows in a shuffled order that is a function of the seed and the step alone.

    Every epoch cuts the text at a new phase into windows that do not overlap and visits each once.
    The order does not depend on the number of workers, and resuming needs nothing but the step.
    """

    def __init__(self, data: Bytes, seq_len: int, sequences: int, seed: int) -> None:
        """`sequences` is the number of windows of one optimizer step, over all workers."""
        self._data, self._seq_len, self._sequences, self._seed = data, seq_len, sequences, seed
        self._per_epoch = (len(data) - 1) // seq_len - 1 or 1
        self._starts = lru_cache(maxsize=2)(self._starts_of)

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> Bytes:
        """Inputs and targets of step `step` (from 0) for one worker: [about sequences / world,
        t + 1]."""
        first, end = (r * self._sequences // world for r in (rank, rank + 1))
        index = step * self._sequences + np.arange(first, end)
        epochs = index // self._per_epoch
        starts = np.empty(len(index), dtype=np.int64)
        for epoch in range(epochs[0], epochs[-1] + 1):
            here = epochs == epoch
            starts[here] = self._starts(epoch)[index[here] % self._per_epoch]
        return windows(self._data, starts, self._seq_len)

    def _starts_of(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([self._seed, epoch])
        phase = rng.integers(min(self._seq_len, len(self._data) - self._seq_len))
        return phase + self._seq_len * rng.permutation(self._per_epoch)


def windows(data: Bytes, starts: NDArray[np.int64], seq_len: int) -> Bytes:
    """Windows of seq_len + 1 bytes at the given starts: [n, t + 1]."""
    return data[starts[:, None] + np.arange(seq_len + 1)]


def _write(path: Path, chunks: "_Chunks", size: int) -> None:
    with path.open("wb") as file:
        while part := chunks.take(size):
            size -= file.write(part)
        file.flush()
        os.fsync(file.fileno())


class _Chunks:
    """A stream of chunks from which at most n bytes are taken at a time; none at its end."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def take(self, size: int) -> memoryview:
        if size and not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        part, self._rest = self._rest[:size], self._rest[size:]
        return part


class _Reading:
    """A corpus read through once; at its end it is known what it is."""

    def __init__(self, config: DataConfig) -> None:
        self._config, self._digest = config, hashlib.sha256()
        self._lengths: list[int] = []

    def __iter__(self) -> Iterator[bytes]:
        """The chunks, none of them empty."""
        try:
            for text in _texts(self._config):
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


def _texts(config: DataConfig) -> list[Iterable[bytes]]:
    """The one text that is cut, or the three that were given."""
    if config.validation_path is None:
        read = CORPORA[config.corpus].read
        return [read() if config.path is None else read(config.path)]
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
