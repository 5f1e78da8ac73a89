"""Repeating what a database, a server or an object store could not do now.

Used by the tracking store, the model registry, shared storage and downloads. Each states which
errors are transient and how long they are waited out; the repeating is the same for all.
"""

import logging
import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
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
        """Log a failure of a call unless one was logged less than LOG_SECONDS ago."""
        last = -math.inf

        def log(state: "tenacity.RetryCallState") -> None:
            nonlocal last
            waited = state.seconds_since_start or 0.0
            if not self.name or waited < last + LOG_SECONDS:
                return
            last, error = waited, state.outcome and state.outcome.exception()
            since = f" (for {waited:.0f} s now)" if state.attempt_number > 1 else ""
            text = first_line(error) if error else ""
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
