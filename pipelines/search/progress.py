"""Progress of a search: a line for each trial that ends, and a status of the search.

Used by `run`. The status has the trials by state, the best so far, the speed and the time left.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.console.progress import Progress
from pipelines.console.text import format_duration, format_value
from pipelines.console.updates import Bar, ProgressUpdate
from pipelines.search.config import SearchTask
from pipelines.search.trial import TrialOutcome
from pipelines.tracking.schema import BEST_METRIC
from pipelines.tracking.trials import STATUS_OF_STATE, StoredTrial
from pipelines.training.history import STEP


@dataclass
class _RunningTrial:
    """A trial between its start and its end."""

    share: float = 0.0
    """Used fraction of its budget."""
    objective: float | None = None
    bytes_per_second: float = 0.0


class SearchProgress:
    """Counts the trials of a search by state, and shows each change."""

    def __init__(self, task: SearchTask, stored: Sequence[StoredTrial], progress: Progress) -> None:
        """`stored` are the trials of earlier sessions of the search."""
        self._task, self._progress = task, progress
        self._counts = {s: sum(t.state == s for t in stored) for s in STATUS_OF_STATE}
        self._running: dict[int, _RunningTrial] = {}
        self._best: tuple[float, int] | None = None
        """The best objective and its trial's number."""
        self._curve: list[float] = []
        """The best objective so far, at each evaluation of any trial."""
        for trial in stored:
            if trial.state == "complete" and trial.objective is not None:
                self._update_best(trial.objective, trial.number)
        self._ended_before, self._started = self._ended, time.monotonic()
        self._invalid = self._repeated = 0
        """Proposals that were not run."""

    @property
    def _ended(self) -> int:
        return sum(self._counts.values())

    def started(self, number: int, values: Mapping[str, Any]) -> None:
        """Show that a trial started, or was retried."""
        self._progress.emit_event("trial", trial=number, state="started", values=values)
        self._running[number] = _RunningTrial()
        self._show()

    def left_out(self, values: Mapping[str, Any], problem: str) -> None:
        """Count a proposal that is not run, with the problem of an invalid one; show the first."""
        if not problem:
            self._repeated += 1
            return
        self._invalid += 1
        if self._invalid == 1:
            line = f"  invalid points of the space are left out: {problem}  ({_tried(values)})"
            self._progress.log(line, "trial", state="invalid", values=values, reason=problem)

    def summarize(self) -> None:
        """Show how many proposals were not run, if any, and whether the space has no more."""
        data = {"invalid": self._invalid, "repeated": self._repeated}
        counts = [
            f"{self._invalid} invalid" * bool(self._invalid),
            f"{self._repeated} equal to earlier trials" * bool(self._repeated),
        ]
        if any(counts):
            line = f"  proposals that were not run: {', '.join(filter(None, counts))}"
            self._progress.log(line, "search", state="left out", **data)

    def noted(self, number: int, text: str) -> None:
        """Show a note about a trial, such as that it resumes."""
        line = f"  trial {number}: {text}"
        self._progress.log(line, "trial", trial=number, state="note", text=text)

    def reported(self, number: int, tokens: int, objective: float, bytes_per_second: float) -> None:
        """Show a trial's training tokens, speed and objective, its best so far."""
        share = min(1.0, tokens / self._task.base.train.tokens)
        self._running[number] = _RunningTrial(share, objective, bytes_per_second)
        self._update_best(objective, number)
        self._show()

    def crashed(self, number: int, reason: str, retry: int) -> None:
        """Show that a trial crashed and will be retried, for the `retry`th time."""
        self._running.pop(number, None)
        self._progress.log(
            f"  trial {number} crashed: {reason}; resumes from its last checkpoint "
            f"(retry {retry} of {self._task.base.failures.retries})",
            "trial",
            **{"trial": number, "state": "crashed", "reason": reason, "retry": retry},
        )

    def ended(
        self, number: int, values: Mapping[str, Any], run_id: str, outcome: TrialOutcome
    ) -> None:
        """Show that a trial ended as complete, pruned or failed."""
        self._running.pop(number, None)
        self._counts[outcome.state] += 1
        result, data = outcome.reason, dict[str, Any](reason=outcome.reason)
        if outcome.objective is not None:
            steps = outcome.last_row[STEP]
            metric = BEST_METRIC.format(self._task.base.train.best_metric)
            result = f"{steps} steps, best {outcome.objective:.4f} bits per byte"
            data = {"steps": steps, metric: outcome.objective}
        self._progress.log(
            f"  trial {number} {outcome.state}: {result}  ({_tried(values)})",
            "trial",
            **{"trial": number, "state": outcome.state, "values": values, "run": run_id, **data},
        )
        self._show()

    def _update_best(self, objective: float, number: int) -> None:
        if self._best is None or objective < self._best[0]:
            self._best = (objective, number)
        self._curve.append(self._best[0])

    def _show(self) -> None:
        total, counts = self._task.search.trial_count, self._counts
        speed = sum(trial.bytes_per_second for trial in self._running.values())
        states = [f"{n} {state}" for state, n in counts.items() if n]
        running = f"{len(self._running)} running"
        best = f", best {self._best[0]:.4f} (trial {self._best[1]})" if self._best else ""
        done, seconds = f"{self._ended}/{total} trials", self._seconds_left()
        left = "" if seconds is None else f", about {format_duration(seconds)} left"
        ended = f" ({', '.join(states)})" if states else ""
        bars = [Bar("search", self._trials_done / total, f"{done}{left}")]
        self._progress.update(
            ProgressUpdate(
                text=f"search: {done}{ended}, {running}{best}{left}",
                bars=[*bars, *(_bar(n, trial) for n, trial in sorted(self._running.items()))],
                note=f"{', '.join([*states, running])}{best}, {speed:,.0f} bytes/s",
                curve=self._curve,
                data=self._data(speed, seconds),
            )
        )

    def _data(self, speed: float, seconds_left: float | None) -> dict[str, Any]:
        best, number = self._best or (None, None)
        return {
            "stage": "search",
            "trials": {"of": self._task.search.trial_count, **self._counts},
            "running": {number: trial.share for number, trial in self._running.items()},
            "best": best,
            "best_trial": number,
            "bytes_per_second": speed,
            "seconds_left": seconds_left,
        }

    @property
    def _trials_done(self) -> float:
        """Trials that ended, and the used part of each running one."""
        return self._ended + sum(trial.share for trial in self._running.values())

    def _seconds_left(self) -> float | None:
        """Estimate from the rate of this session; None before its first evaluation."""
        if self._trials_done <= self._ended_before:
            return None
        rate = (self._trials_done - self._ended_before) / (time.monotonic() - self._started)
        return (self._task.search.trial_count - self._trials_done) / rate


def _tried(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={format_value(value, digits=3)}" for key, value in values.items())


def _bar(number: int, trial: _RunningTrial) -> Bar:
    if trial.objective is None:
        return Bar(f"trial {number}", 0.0, "starting")
    note = f"{trial.objective:.4f}, {trial.bytes_per_second:,.0f} bytes/s"
    return Bar(f"trial {number}", trial.share, note)
