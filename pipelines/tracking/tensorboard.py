"""TensorBoard's event files, beside MLflow: a folder for each run. Written by the writer."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from pipelines.console.errors import StorageError
from pipelines.console.text import reason_of
from pipelines.training.history import STEP, TIME


class EventFiles:
    """The curves of an experiment's runs in <storage>/tensorboard/<experiment>/<run>.

    A resumed run replays its whole history first: its folder is then written anew, so that no crash
    leaves a gap or a duplicate.
    """

    def __init__(self, storage: Path, experiment: str) -> None:
        self._folder = storage / "tensorboard" / experiment
        self._files: dict[str, EventsWriter] = {}
        self._last_steps: dict[str, float] = {}
        """Of each run: the step of the last row that was written."""

    def write(self, run: str, rows: Iterable[Mapping[str, float]]) -> None:
        """Write those rows of a run, in the order of their steps, that are not there yet.

        Raises StorageError if the files cannot be written.
        """
        try:
            file = self._files.get(run) or self._open(run)
            for row in rows:
                if row[STEP] > self._last_steps.get(run, -1):
                    file.write_event(_event(row))
                    self._last_steps[run] = row[STEP]
            file.flush()
        except OSError as error:
            raise StorageError(
                f"{self._folder / run}: cannot be written: {reason_of(error)}"
            ) from error

    def _open(self, run: str) -> EventsWriter:
        folder = self._folder / run
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        self._files[run] = EventsWriter(str(folder / "events"))
        return self._files[run]

    def end(self, run: str) -> None:
        """Close the file of a run that has ended."""
        if file := self._files.pop(run, None):
            file.close()

    def close(self) -> None:
        """Close every file."""
        for run in list(self._files):
            self.end(run)


def event_files(storage: str, experiment: str, *, enabled: bool) -> EventFiles | None:
    """The event files of an experiment if enabled, else None; its storage is then no URI."""
    return EventFiles(Path(storage).absolute(), experiment) if enabled else None


def _event(row: Mapping[str, float]) -> Event:
    values = [
        Summary.Value(tag=key, simple_value=value)
        for key, value in row.items()
        if key not in (STEP, TIME)
    ]
    return Event(step=int(row[STEP]), wall_time=row[TIME], summary=Summary(value=values))
