"""corpus: the text, measured and split into storage. Always runs; the splits are made once."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipelines.console.errors import ConfigError
from pipelines.console.updates import OutputMode
from pipelines.data.fingerprint import Corpus
from pipelines.data.splits import find_splits, measure_corpus, sealed_test, write_splits
from pipelines.engine.stage import Context, Outputs, Stage
from pipelines.experiment import Experiment
from pipelines.storage.files import File, size_of, temporary_copy
from pipelines.storage.location import storage_folder


class CorpusStage:
    """The corpus of one command, which reads it through once, or not at all if it has the splits
    of an earlier `fingerprint`."""

    def __init__(
        self, output: OutputMode = OutputMode.TEXT, *, fingerprint: str | None = None
    ) -> None:
        """With a `fingerprint` the very bytes of an earlier run, else those of today."""
        self._output, self._fingerprint = output, fingerprint
        self._measured: Corpus | None = None
        self.stage = Stage(name="corpus", run=self.run, cached=False, preview=self.preview)

    def preview(self, experiment: Experiment) -> Outputs:
        """Name, fingerprint and sizes; writes nothing. Raises ConfigError."""
        if self._fingerprint and (files := _find(experiment, self._fingerprint)):
            sizes = {split: size_of(file) for split, file in files.items()}
            return _outputs(experiment, self._fingerprint, sizes)
        found = self.measure(experiment)
        if self._fingerprint:
            _require(experiment, found, self._fingerprint)
        return _outputs(experiment, found.fingerprint, found.sizes)

    def run(self, context: Context[Experiment], needs: Mapping[str, Outputs]) -> Outputs:
        """Make sure that the splits are in storage."""
        experiment = context.config
        if not (self._fingerprint and _find(experiment, self._fingerprint)):
            corpus = self.measure(experiment)
            write_splits(experiment.data, corpus, context.storage, self._output)
        return self.preview(experiment)

    def measure(self, experiment: Experiment) -> Corpus:
        """What the text is today."""
        if self._measured is None:
            seq_len = experiment.train.seq_len
            self._measured = measure_corpus(experiment.data, seq_len=seq_len, mode=self._output)
        return self._measured


@contextmanager
def test_bytes(experiment: Experiment, fingerprint: str) -> Iterator[Path]:
    """The test split of an earlier run, from storage or made again for the time of a block.

    Raises ConfigError if it is not in storage and `data` has other bytes today.
    """
    if files := _find(experiment, fingerprint):
        with temporary_copy(files["test"]) as path:
            yield path
        return
    found = measure_corpus(experiment.data, seq_len=experiment.train.seq_len)
    _require(experiment, found, fingerprint)
    with tempfile.TemporaryDirectory() as scratch:
        write_splits(experiment.data, found, Path(scratch))
        with temporary_copy(sealed_test(Path(scratch), fingerprint)) as path:
            yield path


def _outputs(experiment: Experiment, fingerprint: str, sizes: Mapping[str, int]) -> Outputs:
    return {"name": experiment.data.corpus, "fingerprint": fingerprint, "bytes": dict(sizes)}


def _find(experiment: Experiment, fingerprint: str) -> dict[str, File] | None:
    return find_splits(storage_folder(experiment.storage), fingerprint)


def _require(experiment: Experiment, found: Corpus, fingerprint: str) -> None:
    if found.fingerprint != fingerprint:
        data = experiment.data
        raise ConfigError(
            f"data: the corpus {fingerprint} is not in {storage_folder(experiment.storage)}, and "
            f"{data.path or data.corpus} is {found.fingerprint} today; expected "
            "storage=FOLDER or data.path=PATH where it still is"
        )
