"""corpus: the text, measured and split into storage. Always runs; the splits are made once."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from pipelines.runtime.config import Config
from pipelines.runtime.dag import Context, Outputs, Stage, storage_path
from pipelines.runtime.errors import ConfigError
from pipelines.training.data import Corpus, measure, prepare, split_paths

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
        paths = _kept(config, fingerprint)
        sizes = (
            {split: path.stat().st_size for split, path in paths.items()}
            if paths
            else _same(config, fingerprint).sizes
        )
        return {"name": name, "fingerprint": fingerprint, "bytes": sizes}

    return Stage(name="corpus", run=restore, remembered=False, peek=known)


@contextmanager
def test_bytes(config: Config, fingerprint: str) -> Iterator[Path]:
    """The test split of an earlier run, from storage or made again for the time of a block.

    Raises ConfigError if it is not in storage and `data` has other bytes today.
    """
    if kept := _kept(config, fingerprint):
        yield kept["test"]
        return
    found = _same(config, fingerprint)
    with tempfile.TemporaryDirectory() as scratch:
        prepare(config.data, found, Path(scratch))
        yield split_paths(Path(scratch), fingerprint)["test"]


def _kept(config: Config, fingerprint: str) -> dict[str, Path] | None:
    paths = split_paths(storage_path(config), fingerprint)
    return paths if all(path.exists() for path in paths.values()) else None


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
