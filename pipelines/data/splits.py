"""The train, validation and test splits of a corpus in storage.

A corpus is stored under its fingerprint, each split in a file that is memory-mapped. The test split
is in another folder: neither the training nor the search receives a handle to it. Used by the
corpus stage, which writes the splits, and by whatever reads one.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipelines.console.errors import ConfigError, PipelineError, Problem, StorageError
from pipelines.console.text import counted
from pipelines.console.updates import OutputMode
from pipelines.data.config import DataConfig
from pipelines.data.corpora import CORPORA
from pipelines.data.files import read_files
from pipelines.data.fingerprint import HELD_OUT_SHARE, SPLIT_KEYS, Corpus
from pipelines.data.reading import ChunkBuffer, CorpusReader, work_shown
from pipelines.storage.digests import file_state
from pipelines.storage.files import File, file_at, move_into_place, put_file, size_of
from pipelines.storage.remote import Folder
from pipelines.storage.scratch import scratch_folder

MIN_BYTES = 3
"""Of a split: the gate needs two predicted bytes for an interval."""


@dataclass(frozen=True)
class TrainValSplits:
    """The splits that training and the search may read, for any node."""

    train: File
    validation: File


def measure_corpus(
    config: DataConfig, *, seq_len: int, mode: OutputMode = OutputMode.TEXT
) -> Corpus:
    """The fingerprint and sizes of a corpus, which is read once and not written.

    A whole published text is not even read. Raises ConfigError for a corpus that is missing or
    whose folder is a file, or whose splits are too short for windows of `seq_len` bytes.
    """
    known = CORPORA[config.corpus].published
    if known is not None and not is_prefix(config):
        CORPORA[config.corpus].is_missing(config.path)  # raises for what is no folder
        corpus = Corpus.of(known.sha256, [known.text_bytes])
    else:
        reader = CorpusReader(config, mode)
        for _ in reader:
            pass
        corpus = reader.corpus
    _require_windows(config, corpus, seq_len)
    return corpus


def is_prefix(config: DataConfig) -> bool:
    """Whether the corpus is only the first bytes of a published text, so that it must be read."""
    known = CORPORA[config.corpus].published
    return known is not None and known.text_bytes > (config.max_bytes or known.text_bytes)


def _require_windows(config: DataConfig, corpus: Corpus, seq_len: int) -> None:
    least = max(seq_len + 1, MIN_BYTES)
    if config.validation_path is None and corpus.sizes["test"] < least:
        message = (
            f"the corpus has {counted(sum(corpus.sizes.values()), 'byte')}; expected at least "
            f"{int(least / HELD_OUT_SHARE) + 1:,} for splits of 90/5/5 % and "
            f"train.seq_len = {seq_len}"
        )
        raise ConfigError(Problem(message, "data"))
    for split, size in corpus.sizes.items():
        if size < least:
            expected = f"more than train.seq_len = {seq_len}"
            if least > seq_len + 1:
                expected = f"at least {least}"
            message = f"{counted(size, 'byte')}; expected {expected}"
            raise ConfigError(Problem(message, f"data.{SPLIT_KEYS[split]}"))


def write_splits(
    config: DataConfig, corpus: Corpus, storage: Folder, mode: OutputMode = OutputMode.TEXT
) -> None:
    """Write the splits of a measured corpus into storage, unless they are complete there.

    Raises ConfigError, and writes nothing, if the text has changed since it was measured.
    """
    found = find_splits(storage, corpus.fingerprint, mode)
    if found and all(size_of(file) == corpus.sizes[split] for split, file in found.items()):
        return
    if isinstance(storage, Path):
        _write_local(config, corpus, storage, mode)
        return
    with scratch_folder() as scratch:
        _write_local(config, corpus, scratch, mode)
        with work_shown("storing the splits of the text", mode):
            for name in _names(corpus.fingerprint).values():
                put_file(scratch / name, storage / name)


def _write_local(config: DataConfig, corpus: Corpus, storage: Path, mode: OutputMode) -> None:
    paths = {split: storage / name for split, name in _names(corpus.fingerprint).items()}
    (storage / "corpora").mkdir(parents=True, exist_ok=True)
    with scratch_folder(storage / "corpora") as scratch:
        reader = CorpusReader(config, mode)
        chunks = ChunkBuffer(iter(reader))
        for split, size in corpus.sizes.items():
            _write(scratch / split, chunks, size)
        if chunks.take(1) or reader.corpus != corpus:
            message = "the text changed while it was read; run the same command again"
            raise ConfigError(Problem(message, "data"))
        for split, path in paths.items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                move_into_place(scratch / split, path)
            except OSError as error:  # as where a folder has the name
                raise StorageError(f"{path}: cannot be written: {error.strerror}") from None


def train_val_splits(storage: Folder, fingerprint: str) -> TrainValSplits:
    """The train and validation splits of a stored corpus."""
    names = _names(fingerprint)
    return TrainValSplits(_file(storage / names["train"]), _file(storage / names["validation"]))


def sealed_test(storage: Folder, fingerprint: str) -> File:
    """The test split, for the evaluation of a finished candidate only."""
    return _file(storage / _names(fingerprint)["test"])


def find_splits(
    storage: Folder, fingerprint: str, mode: OutputMode = OutputMode.QUIET
) -> dict[str, File] | None:
    """The splits of a corpus in the order of the text.

    None unless all of them are in storage and their bytes have the fingerprint; each process reads
    them once, which is shown as `mode` demands.
    """
    found = {split: file_at(storage / name) for split, name in _names(fingerprint).items()}
    files = {split: file for split, file in found.items() if file is not None}
    if len(files) < len(found):
        return None
    states = [file_state(file) if isinstance(file, Path) else () for file in files.values()]
    try:
        with work_shown("checking the splits in storage", mode):
            _verify(tuple(files.values()), tuple(states), fingerprint)
    except ValueError:
        return None
    return files


@lru_cache(maxsize=64)
def _verify(files: tuple[File, ...], states: tuple[tuple[int, ...], ...], fingerprint: str) -> None:
    """Raise ValueError, anew at each call, unless files are the splits of a corpus.

    The digests beside shared files must be theirs too: by these each node checks its copy. `states`
    are those of files of this machine.
    """
    digest = hashlib.sha256()
    for file in files:
        if isinstance(file, Path):
            for chunk in read_files([file]):
                digest.update(chunk)
        else:
            own, digest = file.place.add_to(hashlib.sha256(), digest)
            if own.hexdigest() != file.sha256:
                raise ValueError(f"{file.place}: not of the digest beside it")
    sizes = [size_of(file) for file in files]
    one_text, held_out = (
        Corpus.of(digest.hexdigest(), lengths) for lengths in ([sum(sizes)], sizes)
    )
    if not any(
        found.fingerprint == fingerprint and [*found.sizes.values()] == sizes
        for found in (one_text, held_out)
    ):
        raise ValueError(f"not the corpus {fingerprint}")


def _file(place: Folder) -> File:
    """The file at a path; in a local folder it need not exist yet."""
    file = place if isinstance(place, Path) else file_at(place)
    if file is None:
        raise PipelineError(
            f"{place}: no such file in storage any more; run the same command again"
        )
    return file


def _names(fingerprint: str) -> dict[str, str]:
    """The path of each split in storage, in the order of the text."""
    return {
        "train": f"corpora/{fingerprint}/train.bin",
        "validation": f"corpora/{fingerprint}/validation.bin",
        "test": f"corpora/sealed/{fingerprint}.bin",
    }


def _write(path: Path, chunks: ChunkBuffer, size: int) -> None:
    with path.open("wb") as file:
        while part := chunks.take(size):
            size -= file.write(part)
