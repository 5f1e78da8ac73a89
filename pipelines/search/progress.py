"""The search as it stands: trials by state, the best so far, speed and time left."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.console.progress import Progress
from pipelines.console.text import format_duration
from pipelines.console.updates import Bar, ProgressUpdate
from pipelines.search.config import SearchTask
from pipelines.search.resume import StoredTrial
from pipelines.search.study import STATES


@dataclass
class _RunningTrial:
    """A trial between its start and its end."""

    share: float = 0.0
    """Part of its budget that it has used."""
    objective: float | None = None
    bytes_per_second: float = 0.0


class SearchProgress:
    """Hears of the trials and shows, each time, how the search stands."""

    def __init__(self, task: SearchTask, stored: Sequence[StoredTrial], progress: Progress) -> None:
        """`stored` trials were begun by earlier starts of the search."""
        self._task, self._progress = task, progress
        self._counts = {s: sum(t.state == s for t in stored) for s in STATES}
        self._running: dict[int, _RunningTrial] = {}
        self._best: tuple[float, int] | None = None
        self._curve: list[float] = []
        """The best so far, each time a trial told something."""
        for trial in stored:
            if trial.state == "complete" and trial.objective is not None:
                self._hear(trial.objective, trial.number)
        self._first, self._started = self._ended, time.monotonic()

    @property
    def _ended(self) -> int:
        return sum(self._counts.values())

    def started(self, number: int) -> None:
        """A trial begins, or begins again."""
        self._running[number] = _RunningTrial()
        self._show()

    def reported(self, number: int, tokens: int, objective: float, bytes_per_second: float) -> None:
        """A trial has trained on so many tokens; `objective` is its best by now."""
        share = min(1.0, tokens / self._task.base.train.tokens)
        self._running[number] = _RunningTrial(share, objective, bytes_per_second)
        self._hear(objective, number)
        self._show()

    def crashed(self, number: int) -> None:
        """A trial waits to be started again."""
        self._running.pop(number, None)

    def ended(self, number: int, state: str) -> None:
        """A trial is complete, pruned or failed."""
        self._running.pop(number, None)
        self._counts[state] += 1
        self._show()

    def _hear(self, objective: float, number: int) -> None:
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
        bars = [Bar("search", self._finished / total, f"{done}{left}")]
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
    def _finished(self) -> float:
        """In trials; one that is running counts in part."""
        return self._ended + sum(trial.share for trial in self._running.values())

    def _seconds_left(self) -> float | None:
        """None while there is nothing to go by."""
        if self._finished <= self._first:
            return None
        rate = (self._finished - self._first) / (time.monotonic() - self._started)
        return (self._task.search.trial_count - self._finished) / rate


def _bar(number: int, trial: _RunningTrial) -> Bar:
    if trial.objective is None:
        return Bar(f"trial {number}", 0.0, "begins")
    note = f"{trial.objective:.4f}, {trial.bytes_per_second:,.0f} bytes/s"
    return Bar(f"trial {number}", trial.share, note)
