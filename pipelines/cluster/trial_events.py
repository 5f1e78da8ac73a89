"""The events of Ray Tune's trials: what is stored and shown of each, and why one crashed.

Used by `jobs`; the searches and the fits of a study each store and show their own.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ray.tune.experiment import Trial as TuneTrial

from pipelines.cluster.trial import TrialOutcome
from pipelines.compat.ray import crash_line, exit_detail, trial_error
from pipelines.console.errors import StorageError
from pipelines.console.secrets import redact
from pipelines.training.config import TrainingRun
from pipelines.training.history import TOKENS_PER_SECOND, Row

MAX_REASON_CHARACTERS = 1000


class TrialRecorder(Protocol):
    """What is stored of the trials of a group."""

    def write(self, number: int, rows: Sequence[Row]) -> None:
        """Store new rows of a trial's history."""

    def end_trial(self, number: int, outcome: TrialOutcome) -> str:
        """Store how a trial ended; returns the id of its run."""

    def step_ended(self) -> None:
        """Called by Tune's loop after the events of any group, and between them."""


class TrialProgress(Protocol):
    """What is shown of the trials of a group."""

    def name(self, number: int) -> str:
        """The name of a trial for people."""

    def started(self, number: int, values: Mapping[str, Any]) -> None:
        """Show that a trial started, or was retried."""

    def noted(self, number: int, text: str) -> None:
        """Show a note about a trial, such as that it resumes."""

    def reported(self, number: int, tokens: int, objective: float, bytes_per_second: float) -> None:
        """Show a trial's training tokens, its best objective so far and its speed."""

    def crashed(self, number: int, reason: str, retry: int) -> None:
        """Show that a trial crashed and will be retried, for the `retry`th time."""

    def ended(
        self, number: int, values: Mapping[str, Any], run_id: str, outcome: TrialOutcome
    ) -> None:
        """Show how a trial ended."""

    def time_passed(self) -> None:
        """Show the status again if nothing was shown for long; called between events too."""


class TrialEvents:
    """Passes the events of a group's trials to the recorder and the progress.

    Its methods have the names and arguments of Tune's callbacks.
    """

    def __init__(
        self,
        base: TrainingRun,
        queued_retry: Callable[[int], int],
        recorder: TrialRecorder,
        progress: TrialProgress,
    ) -> None:
        """The events of a group.

        Args:
            base: The training of its trials, but for their values.
            queued_retry: The number, from 1, of a crashed trial's queued retry; 0 if none is.
            recorder: Stores what is stored of them.
            progress: Shows what is shown of them.

        """
        self._base, self._queued_retry = base, queued_retry
        self._recorder, self._progress = recorder, progress
        self._last_report: dict[int, float] = {}
        """When each running trial started or last reported."""

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Show that a trial starts, or resumes."""
        number = trial.config["number"]
        self._last_report[number] = time.monotonic()
        self._progress.started(number, trial.config["values"])

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Store and show a trial's new rows."""
        number = trial.config["number"]
        self._last_report[number] = time.monotonic()
        for note in result["notes"]:
            self._progress.noted(number, note)
        if "failed" in result:
            return
        rows = result["rows"]
        self._recorder.write(number, rows)
        speed = rows[-1][TOKENS_PER_SECOND]
        self._progress.reported(number, result["tokens"], result["objective"], speed)

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Pass on that time passes, between evaluations too."""
        self._recorder.step_ended()
        self._progress.time_passed()

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Record a trial that used its budget, diverged, or was stopped by the scheduler."""
        self._end(trial, TrialOutcome.of(trial.last_result))

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Record a trial that crashed, unless it is retried.

        Raises StorageError if it could not write a checkpoint: no other trial could either.
        """
        number, error = trial.config["number"], trial_error(trial)
        if isinstance(error, StorageError):
            raise StorageError(f"{self._progress.name(number)}: {error}")
        silent = time.monotonic() - self._last_report.pop(number, math.inf)
        reason = _timeout_reason(self._base, silent) or crash_reason(error)
        if retry := self._queued_retry(number):
            self._progress.crashed(number, reason, retry)
        else:
            self._end(trial, TrialOutcome("failed", reason=reason))

    def _end(self, trial: TuneTrial, outcome: TrialOutcome) -> None:
        number, values = trial.config["number"], trial.config["values"]
        run_id = self._recorder.end_trial(number, outcome)
        self._progress.ended(number, values, run_id, outcome)


def _timeout_reason(base: TrainingRun, silent_seconds: float) -> str:
    """The reason of a trial that exceeded failures.timeout_seconds; empty if it did not.

    The watchdog ends the process of a trial with one worker; of others Ray Train reports the end.
    """
    limit = base.failures.timeout_seconds
    if base.resources.max_workers > 1 or not limit or silent_seconds <= limit:
        return ""
    return f"no evaluation within failures.timeout_seconds = {limit}"


def crash_reason(error: BaseException) -> str:
    """Why a trial crashed, in one line: `MemoryError: ...`, or how its process died."""
    if detail := exit_detail(error):
        return f"its process died: {detail}"
    return redact(crash_line(error))[:MAX_REASON_CHARACTERS]
