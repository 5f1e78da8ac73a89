"""corpus: the text, measured and split into storage. Always runs; the splits are made once."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from pipelines.runtime.config import Config
from pipelines.runtime.dag import Context, Outputs, Stage, storage_path
from pipelines.runtime.errors import ConfigError
from pipelines.runtime.storage import File, borrowed, size_of
from pipelines.training.data import Corpus, kept, measure, prepare, sealed_test

_measured = cache(measure)  # one command reads a corpus through once


def look(config: Config) -> Outputs:
    """Fingerprint and sizes; writes nothing."""
    found = _measured(config.data, seq_len=config.train.seq_len)
    return {"name": config.data.corpus, "fingerprint": found.fingerprint, "bytes": found.sizes}


def corpus(context: Context, needs: Mapping[str, Outputs]) -> Outputs:
    """Measure the corpus and make sure that its splits are in storage."""
    found = _measured(context.config.data, seq_len=context.config.train.seq_len)
    prepare(context.config.data, found, context.storage)
    return look(context.config)


def again(name: str, fingerprint: str) -> Stage:
    """The stage that hands out the very bytes an earlier run has read, or raises ConfigError."""

    def restore(context: Context, needs: Mapping[str, Outputs]) -> Outputs:
        if _kept(context.config, fingerprint) is None:
            corpus(context, needs)
        return known(context.config)

    def known(config: Config) -> Outputs:
        files = _kept(config, fingerprint)
        sizes = (
            {split: size_of(file) for split, file in files.items()}
            if files
            else _same(config, fingerprint).sizes
        )
        return {"name": name, "fingerprint": fingerprint, "bytes": sizes}

    return Stage(name="corpus", run=restore, remembered=False, peek=known)


@contextmanager
def test_bytes(config: Config, fingerprint: str) -> Iterator[Path]:
    """The test split of an earlier run, from storage or made again for the time of a block.

    Raises ConfigError if it is not in storage and `data` has other bytes today.
    """
    if files := _kept(config, fingerprint):
        with borrowed(files["test"]) as path:
            yield path
        return
    found = _same(config, fingerprint)
    with tempfile.TemporaryDirectory() as scratch:
        prepare(config.data, found, Path(scratch))
        with borrowed(sealed_test(Path(scratch), fingerprint)) as path:
            yield path


def _kept(config: Config, fingerprint: str) -> dict[str, File] | None:
    return kept(storage_path(config), fingerprint)


def _same(config: Config, fingerprint: str) -> Corpus:
    found = _measured(config.data, seq_len=config.train.seq_len)
    if found.fingerprint != fingerprint:
        raise ConfigError(
            f"data: the corpus {fingerprint} is not in {storage_path(config)}, and "
            f"{config.data.path or config.data.corpus} is {found.fingerprint} today; expected "
            "storage=FOLDER or data.path=PATH where it still is"
        )
    return found


STAGE = Stage(name="corpus", run=corpus, remembered=False, peek=look)
