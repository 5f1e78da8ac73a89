"""corpus: the text, measured and split into storage. Always runs; the splits are made once."""

from collections.abc import Mapping
from functools import cache

from pipelines.runtime.config import Config
from pipelines.runtime.dag import Context, Outputs, Stage
from pipelines.training.data import measure, prepare

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


STAGE = Stage(name="corpus", run=corpus, remembered=False, peek=look)
