"""Repeating what a database, a server or an object store could not do now.

Used by the tracking store, the model registry, shared storage and downloads. Each states which
errors are transient and how long they are waited out; the repeating is the same for all.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.console.text import first_line

if TYPE_CHECKING:  # 0.1 s, which a command that repeats nothing need not wait
    import tenacity

T = TypeVar("T")
LOG_SECONDS = 10.0
"""Between two lines about the failures of one call."""


@dataclass(frozen=True)
class RetryPolicy:
    """Which failures of a call are repeated, and how long.

    A call must be safe to repeat: its answer may be lost after its work is done.
    """

    is_transient: Callable[[BaseException], bool]
    """Whether the same call may succeed later."""
    pause_seconds: float = 1.0
    """Longest first pause; it doubles with each further one."""
    max_pause_seconds: float = 60.0
    random_pauses: bool = True
    """Whether a pause is random, up to its longest, so that several callers do not return at the
    same moment."""
    max_seconds: float | None = None
    """From the first call until its failure is final; None: no limit."""
    max_attempts: int | None = None
    """Calls in all; None: no limit."""
    cancelled: threading.Event | None = None
    """Set, it ends a pause at once and makes the next failure final."""
    name: str = ""
    """With it a call's first failure is logged, and another from time to time; empty: none is."""
    describe: Callable[[BaseException], str] = first_line
    """A failure's text in such a line."""

    def call(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """The result of `work`, repeated while its failures are transient.

        Raises its last error once the limits are reached, and any other error at once.
        """
        return self._retrying()(work, *args, **kwargs)

    def _retrying(self) -> "tenacity.Retrying":
        import tenacity

        pauses = tenacity.wait_exponential
        if self.random_pauses:
            pauses = tenacity.wait_random_exponential
        stop: Any = tenacity.stop_never
        if self.max_seconds is not None:
            stop = tenacity.stop_after_delay(self.max_seconds)
        if self.max_attempts is not None:
            stop |= tenacity.stop_after_attempt(self.max_attempts)
        sleep: Any = tenacity.nap.sleep
        if self.cancelled is not None:
            stop |= tenacity.stop_when_event_set(self.cancelled)
            sleep = tenacity.sleep_using_event(self.cancelled)
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(self.is_transient),
            wait=pauses(self.pause_seconds, self.max_pause_seconds),
            stop=stop,
            sleep=sleep,
            before_sleep=self._log_of_a_call(),
            reraise=True,
        )

    def _log_of_a_call(self) -> Callable[["tenacity.RetryCallState"], None]:
        """Log a failure of a call unless the next call is less than LOG_SECONDS after a line."""
        last = -math.inf

        def log(state: "tenacity.RetryCallState") -> None:
            nonlocal last
            waited = state.seconds_since_start or 0.0
            until = waited + state.upcoming_sleep  # before which there is no other line
            if not self.name or until < last + LOG_SECONDS:
                return
            last, error = waited, state.outcome and state.outcome.exception()
            since = f" (for {waited:.0f} s now)" if state.attempt_number > 1 else ""
            text = self.describe(error) if error else ""
            logging.getLogger(__name__).warning("%s: %s; trying again%s", self.name, text, since)

        return log


def within(seconds: float, call: Callable[[], T]) -> T | None:
    """What a call returns, or None if it has not after so many seconds: it is left alone.

    A limit of a connection is for each of its reads, and an answer may come byte by byte.
    """
    answered = Future[T]()

    def answer() -> None:
        try:
            answered.set_result(call())
        except BaseException as error:
            answered.set_exception(error)

    threading.Thread(target=answer, daemon=True).start()
    try:
        return answered.result(seconds)
    except TimeoutError:
        return None


class _Watcher:
    """Calls what is due of all blocks in one thread, which ends once it finds no block: a thread
    for each of thousands of short ones would take longer than most of them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: dict[object, tuple[float, Callable[[], float | None]]] = {}
        self._wakes = math.inf
        self._thread: threading.Thread | None = None

    def add(self, block: object, seconds: float, call: Callable[[], float | None]) -> None:
        """Watch a block from now on."""
        with self._changed:
            self._due[block] = due, _ = time.monotonic() + seconds, call
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, daemon=True)
                self._thread.start()
            elif due < self._wakes:
                self._changed.notify()

    def remove(self, block: object) -> None:
        """Watch it no longer."""
        with self._changed:
            self._due.pop(block, None)

    def _watch(self) -> None:
        while (block := self._next()) is not None:
            seconds = None
            with suppress(Exception):  # it only shows a line, and others are watched too
                _, call = self._due[block]
                seconds = call()
            with self._changed:
                if block in self._due and seconds:
                    self._due[block] = time.monotonic() + seconds, call
                else:
                    self._due.pop(block, None)

    def _next(self) -> object | None:
        """Wait for the block that is due next; None if there is none."""
        with self._changed:
            while self._due:
                block = min(self._due, key=lambda one: self._due[one][0])
                self._wakes, _ = self._due[block]
                if (left := self._wakes - time.monotonic()) <= 0:
                    return block
                self._changed.wait(left)
            self._thread = None
            return None


_watcher = _Watcher()
os.register_at_fork(after_in_child=_watcher.__init__)  # type: ignore[misc]  # which has no thread


@contextmanager
def if_longer(seconds: float, call: Callable[[], float | None]) -> Iterator[None]:
    """Call something in another thread if a block takes longer than so many seconds, and again
    after as many as it returns; if it returns none, once."""
    block = object()
    _watcher.add(block, seconds, call)
    try:
        yield
    finally:
        _watcher.remove(block)
