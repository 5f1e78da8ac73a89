"""The status of trainings side by side: how many have ended, the best so far, speed, time left.

Used by the search for its trials, and by the stages for the fits of a study.
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.console.progress import Progress
from pipelines.console.text import format_duration
from pipelines.console.updates import Bar, ProgressUpdate

SHOW_AGAIN_SECONDS = 5
Key = int | str
"""Of a training in JSON events: a trial's number, or a name."""


@dataclass
class _Running:
    """A training between its start and its end."""

    name: str
    share: float = 0.0
    """Used fraction of its budget."""
    objective: float | None = None
    bytes_per_second: float = 0.0

    @property
    def bar(self) -> Bar:
        if self.objective is None:
            return Bar(self.name, 0.0, "starting")
        note = f"{self.objective:.4f}, {self.bytes_per_second:,.0f} bytes/s"
        return Bar(self.name, self.share, note)


class JobsProgress:
    """Counts trainings by state, and shows each change."""

    def __init__(self, progress: Progress, *, stage: str, unit: str) -> None:
        """A status in which the trainings are called trials or fits, the `unit`."""
        self.progress = progress
        self._stage, self._unit = stage, unit
        self._total = 0
        self._counts = Counter[str]()
        self._running: dict[Key, _Running] = {}
        self._best: tuple[float, Key, str] | None = None
        """The best objective, and the key and the name of its training."""
        self._curve: list[float] = []
        """The best objective so far, at each evaluation of any training."""
        self._begun: dict[Key, float] = {}
        """Parts of the budgets of unfinished trainings that earlier sessions have used."""
        self._ended_now, self._started = 0.0, time.monotonic()
        """Trainings that this session has ended, without the parts that earlier ones had done."""
        self._shown = self._started

    def expect(self, total: int, ended: Mapping[str, int], begun: Mapping[Key, float]) -> None:
        """Add so many trainings, of which earlier sessions have ended some, by state; of others
        they have used these parts of the budgets."""
        self._total += total
        self._counts.update(ended)
        self._begun.update(begun)

    def start(self, key: Key, name: str) -> None:
        """Show that a training started, or was retried."""
        self._running[key] = _Running(name)
        self.show()

    def report(
        self, key: Key, name: str, share: float, objective: float, bytes_per_second: float
    ) -> None:
        """Show the used share of a training's budget, its best objective so far and its speed."""
        share = min(1.0, share)
        if share < self._begun.get(key, 0.0):  # its last checkpoint is gone
            self._begun[key] = share
        self._running[key] = _Running(name, share, objective, bytes_per_second)
        self.note_best(key, name, objective)
        self.show()

    def note_best(self, key: Key, name: str, objective: float) -> None:
        """Compare a training's objective with the best one."""
        if self._best is None or objective < self._best[0]:
            self._best = (objective, key, name)
        self._curve.append(self._best[0])

    def stop(self, key: Key) -> None:
        """Note that a training does not run any more."""
        self._running.pop(key, None)

    def end(self, key: Key, state: str) -> None:
        """Count a training as ended; `show` shows it."""
        self.stop(key)
        self._counts[state] += 1
        self._ended_now += 1 - self._begun.pop(key, 0.0)

    def time_passed(self) -> None:
        """Show the status again, unless that was done some seconds ago: a training may take minutes
        to its next evaluation."""
        if time.monotonic() - self._shown > SHOW_AGAIN_SECONDS:
            self.show()

    def show(self) -> None:
        """Show the status."""
        self._shown = time.monotonic()
        speed = sum(one.bytes_per_second for one in self._running.values())
        states = [f"{n} {state}" for state, n in self._counts.items() if n]
        running = f"{len(self._running)} running"
        best = f", best {self._best[0]:.4f} ({self._best[2]})" if self._best else ""
        done, seconds = f"{self._ended}/{self._total} {self._unit}", self._seconds_left()
        left = "" if seconds is None else f", about {format_duration(seconds)} left"
        ended = f" ({', '.join(states)})" if states else ""
        bars = [Bar(self._stage, self._done / self._total, f"{done}{left}")]
        self.progress.update(
            ProgressUpdate(
                text=f"{self._stage}: {done}{ended}, {running}{best}{left}",
                bars=[*bars, *(one.bar for _, one in sorted(self._running.items()))],
                note=f"{', '.join([*states, running])}{best}, {speed:,.0f} bytes/s",
                curve=self._curve,
                data=self._data(speed, seconds),
            )
        )

    def _data(self, speed: float, seconds_left: float | None) -> dict[str, Any]:
        best, key, _ = self._best or (None, None, None)
        return {
            "stage": self._stage,
            self._unit: {"of": self._total, **self._counts},
            "running": {key: one.share for key, one in self._running.items()},
            "best": best,
            f"best_{self._unit.removesuffix('s')}": key,
            "bytes_per_second": speed,
            "seconds_left": seconds_left,
        }

    @property
    def _ended(self) -> int:
        return self._counts.total()

    @property
    def _done(self) -> float:
        """Trainings that ended, and the used part of each running one."""
        return self._ended + sum(one.share for one in self._running.values())

    def _seconds_left(self) -> float | None:
        """Estimate from the rate of this session; None before it has evaluated anything new."""
        running = self._running.items()
        new = sum(max(0.0, one.share - self._begun.get(key, 0.0)) for key, one in running)
        done_now = self._ended_now + new
        if done_now == 0:
            return None
        rate = done_now / (time.monotonic() - self._started)
        return (self._total - self._done) / rate
