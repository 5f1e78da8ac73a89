"""The Optuna side of the search: the space, the sampler, and a study rebuilt from stored trials."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from pipelines.search.config import SearchConfig, SearchTask
from pipelines.search.resume import StoredTrial, second_value
from pipelines.search.space import Space

BRIEFLY_SECONDS = 0.1
"""How long Tune may wait for the next trial's run while others train."""


@dataclass
class PendingTrial:
    """A trial that the study was asked for."""

    trial: optuna.Trial
    values: dict[str, Any]
    run: Future[str]
    """Done when its run is stored."""
    tokens: int = 0
    reported: set[int] = field(default_factory=set)
    retries: int = 0


class StudySearcher(Searcher):
    """Lets Ray Tune ask an Optuna study, and tells the study how each trial really ended.

    Tune's own OptunaSearch tells an early-stopped trial as complete with its low-budget value, and
    cannot start from stored trials of a conditional space. A trial that crashed is handed out again
    under its number, to go on from its last checkpoint: Tune's own retries leave out trials that
    die while they start. A trial is handed out once its run is stored; Tune does not wait for that.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        task: SearchTask,
        *,
        open_run: Callable[[int, dict[str, Any]], Future[str]],
        stored: Sequence[StoredTrial] = (),
        earlier: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """`earlier` trials of the study are not the search's own; `seconds` of it have passed."""
        super().__init__(metric="objective", mode="min")
        self._study, self._space, self._task = study, space, task
        self._open_run, self._earlier = open_run, earlier
        done = [trial for trial in stored if trial.state is not None]
        self._left = task.search.trial_count - len(done)
        numbers = max((trial.number for trial in stored), default=-1) + 1
        self._unfinished = numbers - len(done)
        """Trials that an earlier start has begun: no budget keeps them from their end."""
        self._spent = sum(trial.tokens for trial in done)
        self._seconds, self._started = seconds, math.inf
        self._ready: list[PendingTrial] = []
        """To be handed out: trials that crashed first, then at most one new one."""
        self._running: dict[str, PendingTrial] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's number and values; None: not yet, FINISHED: none follows."""
        self._started = min(self._started, time.monotonic())  # Ray's start leaves room for a trial
        if not self._ready and self._may_ask():
            self._ready.append(self._ask())
        if not self._ready:
            return None if self._running else Searcher.FINISHED
        asked = self._ready[0]
        wait([asked.run], timeout=BRIEFLY_SECONDS if self._running else None)
        if not asked.run.done():
            return None
        asked.run.result()  # raises if the store refused
        self._running[trial_id] = self._ready.pop(0)
        return {"number": self._number(asked), "values": asked.values}

    def _number(self, asked: PendingTrial) -> int:
        return int(asked.trial.number) - self._earlier

    def _may_ask(self) -> bool:
        tokens = self._spent + sum(asked.tokens for asked in self._running.values())
        seconds = self._seconds + time.monotonic() - self._started
        return self._left > 0 and (
            self._unfinished > 0 or within_budget(self._task.search, tokens, seconds)
        )

    def _ask(self) -> PendingTrial:
        self._left -= 1
        self._unfinished -= 1
        trial = self._study.ask()
        values = self._space.suggest(trial)
        return PendingTrial(trial, values, self._open_run(trial.number - self._earlier, values))

    def retries(self, number: int) -> int:
        """How often a trial that waits to start again will have been retried; of others 0."""
        return sum(asked.retries for asked in self._ready if self._number(asked) == number)

    def should_prune(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether the study's pruner would stop a trial with this result."""
        self._report(self._running[trial_id], result)
        return bool(self._running[trial_id].trial.should_prune())

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Intermediate values, at the tokens they were reached."""
        self._report(self._running[trial_id], result)

    def _report(self, asked: PendingTrial, result: Mapping[str, Any]) -> None:
        asked.tokens = result["tokens"]
        for tokens, value in result["curve"]:
            if tokens not in asked.reported:  # a trial that starts again replays its history
                asked.reported.add(tokens)
                if self._task.search.second_objective is None:
                    asked.trial.report(value, tokens)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Complete only if the budget was used; pruned if it was stopped; else failed."""
        asked = self._running.pop(trial_id, None)
        if asked is None:
            return
        if error and asked.retries < self._task.base.failures.retries:
            asked.retries += 1
            self._ready.insert(0, asked)
            return
        if error or not result or "objective" not in result:
            self._study.tell(asked.trial, state=TrialState.FAIL)
        else:
            self._report(asked, result)
            if result["finished"]:
                second = second_value(self._task, asked.values, result["rows"][-1])
                values = [result["objective"], *([] if second is None else [second])]
                self._study.tell(asked.trial, values)
            else:
                self._study.tell(asked.trial, state=TrialState.PRUNED)
        self._spent += asked.tokens

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the tracking store is the memory of a search."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a resumed search makes a new searcher from the tracking store."""


def within_budget(search: SearchConfig, tokens: int, seconds: float) -> bool:
    """Whether the search's budgets allow another trial after so much."""
    return tokens < (search.max_tokens or math.inf) and seconds < (search.max_seconds or math.inf)
