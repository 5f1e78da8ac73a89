"""Asynchronous writing of runs to the tracking store: in order, on a thread of its own.

Used by the search's recorder and by the stages that train: a store that is slow or unavailable does
not stop them.
"""

import logging
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.console.errors import PipelineError
from pipelines.console.process import is_interrupt
from pipelines.tracking.encoding import ROWS_PER_BATCH, Row, encode_tags, metric_entities
from pipelines.tracking.schema import STEP_METRIC, VAL_BITS_METRIC
from pipelines.tracking.store import Store
from pipelines.training.history import STEP

if TYPE_CHECKING:
    from pipelines.tracking.tensorboard import EventFiles

T = TypeVar("T")
FILE_NAME_BYTES = 255
"""Of the name of a file or a folder, at most."""
INTERRUPTED_SECONDS = 15.0
"""How long an interrupted command waits for a piece of work that is queued."""


class _Worker(threading.Thread):
    """Does what is submitted, in order. The process can end while a server lets it wait, as with
    an executor of Python it cannot."""

    def __init__(self) -> None:
        super().__init__(name="mlflow", daemon=True)
        self.done = 0
        """Pieces of work."""
        self._queue = SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]()

    def submit(self, work: Callable[..., T], *args: Any) -> Future[T]:
        """Queue a piece of work; the future has its result."""
        future = Future[T]()
        self._queue.put((future, partial(work, *args)))
        if self.ident is None:
            self.start()
        return future

    def close(self) -> None:
        """End behind what is queued."""
        self._queue.put(None)

    def run(self) -> None:
        """Do one piece of work after the other."""
        while (item := self._queue.get()) is not None:
            future, work = item
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
            self.done += 1


class Writer:
    """A queue of work on runs: create them, write their rows, end them; a row is stored once.

    A row is identified by its step, so that a resumed run may replay its history.
    """

    def __init__(self, store: Store, events: "EventFiles | None" = None) -> None:
        """`events` are written the same rows."""
        self._store, self._events = store, events
        self._names: dict[str, str] = {}
        """Of the folders of the runs' event files."""
        self._seen: dict[str, set[int]] = {}
        self._incomplete: set[str] = set()
        """Runs with rows that could not be stored: left unfinished, so that they are replayed."""
        self._thread = _Worker()
        self._pending: list[Future[Any]] = []

    def open(self, make: Callable[[], T]) -> Future[T]:
        """Queue the creation, or resumption, of a run; the future has what that returns."""
        return self._submit(make)

    def write(self, run_id: str, rows: Iterable[Row]) -> None:
        """Queue rows; returns at once."""
        self._submit(self._write, run_id, list(rows))

    def finish(
        self, run_id: str, status: str, tags: Mapping[str, str], summary: Row | None = None
    ) -> None:
        """Queue the end of a run, behind its rows, with tags and metrics that sum it up.

        `summary` has `step` and `time`: given twice, it is stored once.
        """
        self._submit(self._finish, run_id, status, dict(tags), summary)

    def enqueue(self, work: Callable[[], None], run_id: str = "") -> None:
        """Queue work behind what was queued before; left out if some of the run is not stored."""
        self._submit(lambda: None if run_id in self._incomplete else work())

    def close(self) -> None:
        """Wait until everything is stored. Raises PipelineError if something could not be.

        After Ctrl-C an unavailable store is waited for a moment, and after a second one not at all.
        """
        try:
            self._thread.close()
            if not self._thread_ended():
                self._store.client.give_up()
                logging.getLogger(__name__).warning(
                    "not waited for: what is not stored yet is in the checkpoints; it is stored, "
                    "and runs that are shown as RUNNING are ended, by the next start"
                )
                return
        except KeyboardInterrupt:
            self._store.client.give_up()
            raise
        if self._events:
            self._events.close()
        for future in self._pending:
            if isinstance(error := future.exception(), PipelineError):
                raise error
            if error:
                raise PipelineError(f"MLflow could not store a run's history: {error}") from error

    def _thread_ended(self) -> bool:
        """Wait for the thread; if an interrupt ends the command, only while it gets on."""
        limit = INTERRUPTED_SECONDS if is_interrupt(sys.exc_info()[1]) else None
        done = -1
        while self._thread.is_alive() and done != self._thread.done:
            done = self._thread.done
            self._thread.join(limit)
        return not self._thread.is_alive()

    def _submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        self._pending = [f for f in self._pending if not f.done() or f.exception()]
        self._pending.append(self._thread.submit(work, *args))
        return self._pending[-1]

    def _write(self, run_id: str, rows: list[Row]) -> None:
        if run_id in self._incomplete:
            return
        try:
            self._store_rows(run_id, rows)
            if self._events:
                self._events.write(self._name(run_id), rows)
        except Exception:
            self._incomplete.add(run_id)
            raise

    def _name(self, run_id: str) -> str:
        if run_id not in self._names:
            name = self._store.client.get_run(run_id).info.run_name
            self._names[run_id] = _folder_name(name, run_id)
        return self._names[run_id]

    def _store_rows(self, run_id: str, rows: list[Row]) -> None:
        client = self._store.client
        if run_id not in self._seen:
            self._seen[run_id] = set(self._store.history(run_id, STEP_METRIC))
        seen = self._seen[run_id]
        new = [row for row in rows if int(row[STEP]) not in seen]
        for first in range(0, len(new), ROWS_PER_BATCH):
            batch = new[first : first + ROWS_PER_BATCH]
            metrics = sorted(metric_entities(batch), key=lambda one: one.key != VAL_BITS_METRIC)
            client.log_batch(run_id, metrics=metrics)
            seen.update(int(row[STEP]) for row in batch)

    def _finish(self, run_id: str, status: str, tags: dict[str, str], summary: Row | None) -> None:
        if run_id in self._incomplete:
            return
        self._store.client.log_batch(
            run_id,
            metrics=list(metric_entities([summary] if summary else [])),
            tags=encode_tags(tags),
        )
        self._store.end(run_id, status)  # last: a run that ended has its state
        self._seen.pop(run_id, None)
        if self._events and run_id in self._names:
            self._events.end(self._names.pop(run_id))


def _folder_name(name: str, run_id: str) -> str:
    """A run's name, in which there may be paths and whole texts, and the start of its id, which is
    unique: as the name of a folder."""
    end = f" {run_id[:8]}"
    start = re.sub(r"[/\0]", "_", name).encode()[: FILE_NAME_BYTES - len(end)]
    return start.decode(errors="ignore") + end
