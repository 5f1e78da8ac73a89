"""Text as bytes: where it comes from, how it is split and kept, how batches are drawn from it.

A corpus lies in storage under its fingerprint, in three files that are memory-mapped. The test
split lies apart: nothing that training or the search receives is a handle to it.
"""

import glob
import gzip
import hashlib
import os
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.runtime.config import DataConfig
from pipelines.runtime.errors import ConfigError

Bytes = NDArray[np.uint8]
CHUNK_BYTES = 1 << 22
HELD_OUT = 0.05
"""Share of the corpus in each of the validation and test splits."""


@dataclass(frozen=True)
class Corpus:
    """What a corpus is, before anything of it is written."""

    fingerprint: str
    """First 32 hex digits of the sha256 of all its bytes."""
    size: int
    """Bytes."""

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each split, in the order of the text."""
        held_out = int(self.size * HELD_OUT)
        return {
            "train": self.size - 2 * held_out,
            "validation": held_out,
            "test": held_out,
        }


@dataclass(frozen=True)
class Development:
    """The files that training and the search may read."""

    train: Path
    validation: Path


def measure(config: DataConfig, *, seq_len: int) -> Corpus:
    """Read a corpus through, writing nothing. Raises ConfigError if it is missing or too short."""
    digest, size = hashlib.sha256(), 0
    for chunk in _read(config):
        digest.update(chunk)
        size += len(chunk)
    corpus = Corpus(digest.hexdigest()[:32], size)
    if corpus.sizes["test"] <= seq_len:
        raise ConfigError(
            f"data: the corpus has {size:,} bytes; expected at least "
            f"{int((seq_len + 1) / HELD_OUT) + 1:,} for splits of 90/5/5 % and "
            f"train.seq_len = {seq_len}"
        )
    return corpus


def prepare(config: DataConfig, corpus: Corpus, storage: Path) -> None:
    """Write the splits of a measured corpus into storage, unless they are there."""
    paths = list(split_paths(storage, corpus.fingerprint).values())
    sizes = list(corpus.sizes.values())
    if all(
        path.exists() and path.stat().st_size == n for path, n in zip(paths, sizes, strict=True)
    ):
        return
    chunks = _Chunks(_read(config))
    for path, size in zip(paths, sizes, strict=True):
        _write(path, chunks, size)


def development(storage: Path, fingerprint: str) -> Development:
    """Where the train and validation splits of a prepared corpus lie."""
    folder = storage / "corpora" / fingerprint
    return Development(folder / "train.bin", folder / "validation.bin")


def sealed_test(storage: Path, fingerprint: str) -> Path:
    """Where the test split lies: for the evaluation of a finished candidate and nothing else."""
    return storage / "corpora" / "sealed" / f"{fingerprint}.bin"


def split_paths(storage: Path, fingerprint: str) -> dict[str, Path]:
    """Where each split lies, in the order of the text."""
    splits = development(storage, fingerprint)
    test = sealed_test(storage, fingerprint)
    return {"train": splits.train, "validation": splits.validation, "test": test}


def open_bytes(path: Path) -> Bytes:
    """A split as a read-only memory map."""
    return np.memmap(path, dtype=np.uint8, mode="r")


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
        """Inputs and targets of step `step` (from 0) for one worker: [sequences / world, t + 1]."""
        first = step * self._sequences + rank * self._sequences // world
        index = np.arange(first, first + self._sequences // world)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        unfinished = Path(scratch) / path.name
        with unfinished.open("wb") as file:
            while size:
                size -= file.write(chunks.take(size))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)


class _Chunks:
    """A stream of chunks from which at most n bytes are taken at a time."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def take(self, size: int) -> memoryview:
        if not self._rest:
            self._rest = memoryview(next(self._chunks))
        part, self._rest = self._rest[:size], self._rest[size:]
        return part


def _read(config: DataConfig) -> Iterator[bytes]:
    return (chunk for chunk in CORPORA[config.corpus](config) if chunk)


def _python_stdlib(_: DataConfig) -> Iterator[bytes]:
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


def _enwik8(config: DataConfig) -> Iterator[bytes]:
    """The first 100 MB of the English Wikipedia of 2006-03-03, plain, zipped or gzipped."""
    folder = Path(config.path or "data")
    for name, opener in _ENWIK8_FILES.items():
        if (folder / name).is_file():
            with opener(folder / name) as file:
                yield from _file_chunks(file)
            return
    names = ", ".join(_ENWIK8_FILES)
    raise ConfigError(f"data.corpus=enwik8: expected one of {names} in {folder.absolute()}")


def _files(config: DataConfig) -> Iterator[bytes]:
    """The user's files in the order of their paths."""
    pattern = str(config.path)
    root = Path(pattern)
    found = sorted(root.rglob("*")) if root.is_dir() else map(Path, sorted(glob.glob(pattern)))  # noqa: PTH207
    paths = [path for path in found if path.is_file()]
    if not paths:
        raise ConfigError(f"data.path: {pattern}: no such file, folder or glob match")
    for path in paths:
        try:
            with path.open("rb") as file:
                yield from _file_chunks(file)
        except OSError as error:
            raise ConfigError(f"data.path: {path}: {error.strerror}") from None


def _file_chunks(file: Any) -> Iterator[bytes]:
    return iter(lambda: file.read(CHUNK_BYTES), b"")


_ENWIK8_FILES: dict[str, Callable[[Path], Any]] = {
    "enwik8": lambda path: path.open("rb"),
    "enwik8.gz": gzip.open,
    "enwik8.zip": lambda path: zipfile.ZipFile(path).open("enwik8"),  # noqa: SIM115
}

CORPORA: dict[str, Callable[[DataConfig], Iterator[bytes]]] = {
    "python-stdlib": _python_stdlib,
    "enwik8": _enwik8,
    "files": _files,
}
"""Every corpus by name: a function from its configuration to its bytes, in chunks."""
