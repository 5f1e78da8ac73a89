"""corpus: the text, fingerprinted and split into storage. Always runs; splits are made once."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import counted, one_line
from pipelines.console.updates import OutputMode
from pipelines.data.files import contained
from pipelines.data.fingerprint import SPLIT_KEYS, Corpus, PreparedCorpus
from pipelines.data.reading import file_search_shown, work_shown
from pipelines.data.splits import find_splits, measure_corpus, sealed_test, write_splits
from pipelines.engine.results import StageResults
from pipelines.engine.stage import Context, Stage
from pipelines.experiment import Experiment
from pipelines.storage.files import size_of, temporary_copy
from pipelines.storage.location import local_storage, storage_folder
from pipelines.storage.scratch import scratch_folder
from pipelines.tracking.uri import ARTIFACTS, database_file, require_folders, tracking_uri

WRITTEN = ("artifacts", "corpora", "fits", "reports", "starts", "tensorboard", "trials")
"""Folders in the storage."""


class CorpusStage:
    """The corpus of one command: its text is read once, or not at all if storage has the splits."""

    def __init__(
        self,
        output: OutputMode = OutputMode.TEXT,
        *,
        fingerprint: str | None = None,
        name: str | None = None,
        is_named: bool = False,
    ) -> None:
        """With the `fingerprint` of an earlier run exactly its bytes, else the present ones.

        `name` is that of the earlier run's corpus; by default it is data.corpus. Of a text that the
        command line names the bytes are compared, though storage has the splits.
        """
        self._is_named = is_named
        self._output, self._fingerprint, self._name = output, fingerprint, name
        self._measured: Corpus | None = None
        self.stage = Stage("corpus", PreparedCorpus, self.run, cached=False, preview=self.preview)

    def preview(self, experiment: Experiment) -> PreparedCorpus:
        """Name, fingerprint and sizes; writes nothing. Raises ConfigError."""
        if self._fingerprint and not self._is_named:
            folder = storage_folder(experiment.storage)
            splits = find_splits(folder, self._fingerprint, self._output)
            if splits:
                sizes = {split: size_of(file) for split, file in splits.items()}
                return self._result(experiment, self._fingerprint, sizes)
        found = self._measure(experiment)
        if self._is_named and self._fingerprint:
            _require_named(found, self._fingerprint)
        _require(experiment, found, self._fingerprint)
        return self._result(experiment, found.fingerprint, found.sizes)

    def _result(
        self, experiment: Experiment, fingerprint: str, sizes: Mapping[str, int]
    ) -> PreparedCorpus:
        name = self._name or experiment.data.corpus
        return PreparedCorpus(name, fingerprint, dict(sizes))

    def run(self, context: Context[Experiment], needs: StageResults) -> PreparedCorpus:
        """Write the splits into storage, unless they are there."""
        result = self.preview(context.config)
        files = self._measured.files if self._measured else None
        sizes = {"files": files, "bytes": sum(result.bytes.values())}
        context.progress.log(f"  {self.size(result)}", "corpus", **sizes)
        if self._measured is not None:
            write_splits(context.config.data, self._measured, context.storage, self._output)
        return result

    def size(self, result: PreparedCorpus) -> str:
        """Its files, as far as they are counted, and its bytes, for people."""
        files = self._measured.files if self._measured else None
        shown = "" if files is None else f"{counted(files, 'file')}, "
        return f"{shown}{sum(result.bytes.values()):,} bytes"

    def _measure(self, experiment: Experiment) -> Corpus:
        if self._measured is None:
            with file_search_shown(self._output):
                _refuse_outputs(experiment)
            seq_len = experiment.train.seq_len
            self._measured = measure_corpus(experiment.data, seq_len=seq_len, mode=self._output)
        return self._measured


@contextmanager
def test_bytes(
    experiment: Experiment, fingerprint: str, *, is_named: bool = False
) -> Iterator[Path]:
    """The test split of an earlier run for a block, from storage or made again from the text.

    Raises ConfigError if it is not in storage and `data` has other bytes now, or if `is_named`, by
    the command line, and they are others.
    """
    with scratch_folder() as scratch, ExitStack() as kept:
        folder = storage_folder(experiment.storage)
        if is_named:
            found = measure_corpus(experiment.data, seq_len=experiment.train.seq_len)
            _require_named(found, fingerprint)
        if not find_splits(folder, fingerprint, OutputMode.TEXT):
            found = measure_corpus(experiment.data, seq_len=experiment.train.seq_len)
            _require(experiment, found, fingerprint)
            folder = scratch
            write_splits(experiment.data, found, folder)
        with work_shown("copying the test split", OutputMode.TEXT):
            path = kept.enter_context(temporary_copy(sealed_test(folder, fingerprint)))
        yield path


def _refuse_outputs(experiment: Experiment) -> None:
    """Raise ConfigError for a text that contains what the commands write: it would change with
    each of them."""
    data = experiment.data
    if data.corpus != "files":
        return
    storage, database = local_storage(experiment.storage), database_file(tracking_uri())
    _require_places(storage, database)
    written = [storage / name for name in WRITTEN] if storage else []
    stores = [database, database.with_name(ARTIFACTS)] if database else []
    for key in SPLIT_KEYS.values():
        if (path := getattr(data, key)) is None:
            continue
        try:
            found = contained(path, [*written, *stores], key=f"data.{key}")
        except OSError as error:  # of a part of the path, before there are files
            message = f"{one_line(path)}: {error.strerror}"
            raise ConfigError(Problem(message, f"data.{key}")) from None
        names = [f"the storage {storage}"] if {*found} & {*written} else []
        names += [f"the tracking store {database}"] if {*found} & {*stores} else []
        if names:
            message = (
                f"{one_line(path)} contains {' and '.join(names)}, which the commands write: the "
                "text would change; expected a folder of its own, storage=FOLDER and "
                "MLFLOW_TRACKING_URI=sqlite:///FILE elsewhere, or a glob such as '*.txt'"
            )
            raise ConfigError(Problem(message, f"data.{key}"))


def _require_places(storage: Path | None, database: Path | None) -> None:
    """Raise ConfigError for a storage below a file, or a folder as the database: a text would be
    blamed for containing it."""
    if storage:
        require_folders(storage)
    if database and database.is_dir():
        from pipelines.tracking.client import check_uri  # with its libraries

        check_uri(tracking_uri())


def names_text(changes: Sequence[str]) -> bool:
    """Whether changes of a command line name a text."""
    return any(change.startswith("data.") for change in changes)


def _require_named(found: Corpus, fingerprint: str) -> None:
    if found.fingerprint != fingerprint:
        message = f"expected the text of the version, {fingerprint}, got another"
        raise ConfigError(Problem(f"{message}, {found.fingerprint}", "data", "command line"))


def _require(experiment: Experiment, found: Corpus, fingerprint: str | None) -> None:
    if fingerprint and found.fingerprint != fingerprint:
        text = experiment.data.path or experiment.data.corpus
        message = (
            f"the corpus {fingerprint} is not in {storage_folder(experiment.storage)}, and {text} "
            f"is {found.fingerprint} now; expected storage=FOLDER or data.path=PATH where it is"
        )
        raise ConfigError(Problem(message, "data"))
