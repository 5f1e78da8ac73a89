"""Text as bytes: where it comes from, how it is split and kept, how batches are drawn from it.

A corpus lies in storage under its fingerprint, in three files that are memory-mapped; from shared
storage each node takes a copy. The test split lies apart: nothing that training or the search
receives is a handle to it.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipelines.console.errors import ConfigError, PipelineError
from pipelines.console.updates import OutputMode
from pipelines.data.config import DataConfig
from pipelines.data.corpora import CORPORA
from pipelines.data.fingerprint import HELD_OUT, PARTS, Corpus
from pipelines.data.reading import ChunkBuffer, CorpusReader
from pipelines.storage.files import File, file_at, put_file, size_of
from pipelines.storage.remote import Folder


@dataclass(frozen=True)
class TrainValSplits:
    """The files that training and the search may read, for any node."""

    train: File
    validation: File


def measure_corpus(
    config: DataConfig, *, seq_len: int, mode: OutputMode = OutputMode.TEXT
) -> Corpus:
    """Read a corpus through, writing nothing; not even that if it is known what it is.

    Raises ConfigError if it is missing or too short.
    """
    if known := CORPORA[config.corpus].known:
        corpus = Corpus.of(known.sha256, [known.text_bytes])
    else:
        reading = CorpusReader(config, mode)
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


def write_splits(
    config: DataConfig, corpus: Corpus, storage: Folder, mode: OutputMode = OutputMode.TEXT
) -> None:
    """Write the splits of a measured corpus into storage, unless they are there.

    Raises ConfigError, and keeps nothing, if the text is another one by now.
    """
    found = find_splits(storage, corpus.fingerprint)
    if found and all(size_of(file) == corpus.sizes[split] for split, file in found.items()):
        return
    if isinstance(storage, Path):
        _write_local(config, corpus, storage, mode)
        return
    with tempfile.TemporaryDirectory() as scratch:
        _write_local(config, corpus, Path(scratch), mode)
        for name in _names(corpus.fingerprint).values():
            put_file(Path(scratch) / name, storage / name)


def _write_local(config: DataConfig, corpus: Corpus, storage: Path, mode: OutputMode) -> None:
    paths = {split: storage / name for split, name in _names(corpus.fingerprint).items()}
    (storage / "corpora").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=storage / "corpora") as scratch:
        reading = CorpusReader(config, mode)
        chunks = ChunkBuffer(iter(reading))
        for split, size in corpus.sizes.items():
            _write(Path(scratch) / split, chunks, size)
        if chunks.take(1) or reading.corpus != corpus:
            raise ConfigError(
                "data: the text changed while it was read; run the same command again"
            )
        for split, path in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            (Path(scratch) / split).replace(path)


def train_val_splits(storage: Folder, fingerprint: str) -> TrainValSplits:
    """The train and validation splits of a prepared corpus."""
    names = _names(fingerprint)
    return TrainValSplits(_file(storage / names["train"]), _file(storage / names["validation"]))


def sealed_test(storage: Folder, fingerprint: str) -> File:
    """The test split: for the evaluation of a finished candidate and nothing else."""
    return _file(storage / _names(fingerprint)["test"])


def find_splits(storage: Folder, fingerprint: str) -> dict[str, File] | None:
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


def _write(path: Path, chunks: ChunkBuffer, size: int) -> None:
    with path.open("wb") as file:
        while part := chunks.take(size):
            size -= file.write(part)
        file.flush()
        os.fsync(file.fileno())
