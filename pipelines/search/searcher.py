"""Proposes the trials of an Optuna study, and reports to the study how they go.

Used by pipelines/search/run.py as the source of a search's trials. Tune's own OptunaSearch is not
enough: it reports a pruned trial as complete, with its value at a low budget, and cannot start from
stored trials of a conditional space.
"""

import math
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import optuna
from optuna.trial import TrialState
from pydantic import SecretStr

from pipelines.cluster.jobs import FINISHED
from pipelines.cluster.trial import TrialOutcome
from pipelines.search.config import SearchTask
from pipelines.search.resume import StoredSearch, second_value, trial_folder_name
from pipelines.search.study import Proposal, Proposals
from pipelines.tracking.trials import TrialRun

RUN_WAIT_SECONDS = 0.1
"""How long Tune may wait for the next trial's run while others train."""


@dataclass
class PendingTrial:
    """A trial that the study has proposed and that has not ended."""

    number: int
    proposal: Proposal
    run: Future[TrialRun]
    """Its MLflow run, once that is stored."""
    tokens: int = 0
    """Training tokens so far."""
    reported: set[int] = field(default_factory=set)
    """Tokens at which the study has a value of it."""
    retries: int = 0
    """Number of retries after crashes."""

    @property
    def trial(self) -> optuna.Trial:
        """Of the study."""
        return self.proposal.trial

    @property
    def values(self) -> dict[str, Any]:
        """Of its searched keys."""
        return self.proposal.values


class Clock:
    """The time that a search has taken, over all its sessions: of each from its first trial on, or
    from that of another arm, without the start of Ray.

    Used by the searcher, for the budget, and by the recorder, which stores it.
    """

    def __init__(self, previous_seconds: float = 0.0) -> None:
        """A clock that does not run yet, after earlier sessions of so long."""
        self._previous_seconds, self._started = previous_seconds, math.inf

    def start(self) -> None:
        """Begin to count the time of this session, unless that has begun."""
        self._started = min(self._started, time.monotonic())

    @property
    def seconds(self) -> float:
        """Of all sessions."""
        return self._previous_seconds + max(0.0, time.monotonic() - self._started)


class StudySearcher:
    """Proposes trials and reports to the study how each of them ended.

    A trial is proposed once its run is stored. One that crashed is proposed again under its number,
    to continue from its last checkpoint.
    """

    def __init__(
        self,
        study: optuna.Study,
        task: SearchTask,
        *,
        open_run: Callable[[int, dict[str, Any]], Future[TrialRun]],
        stored: StoredSearch,
        clock: Clock | None = None,
        left_out: Callable[[Mapping[str, Any], str], None] = lambda values, problem: None,
    ) -> None:
        """A searcher for one session of a search.

        Args:
            study: Built from the stored trials.
            task: The search.
            open_run: Creates or reopens, asynchronously, the run of a trial's number and values.
            stored: Trials of earlier sessions of the search.
            clock: Of the search, which its budget of time is compared with; by default a new one.
            left_out: Called for a proposal that is not run, see `Proposals`.

        """
        self._proposals = Proposals(study, task, stored.ended, left_out)
        self._task = task
        self._open_run = open_run
        self._left = stored.missing(task.search.trial_count)
        self._unfinished = len(stored.trials) - len(stored.ended)
        """Trials that an earlier session has started: they are finished whatever the budgets."""
        taken = stored.numbers
        self._free_numbers = (number for number in count() if number not in taken)
        self._tokens = stored.tokens
        """Training tokens of ended trials."""
        self._trained = {trial.number: trial.tokens for trial in stored.trials}
        """Those of trials of earlier sessions, before they report in this one."""
        self._clock = clock or Clock()
        self._queue: list[PendingTrial] = []
        """Trials to propose next: retries first, then at most one new trial."""
        self._running: dict[str, PendingTrial] = {}
        """Running trials by Tune's id."""

    def start_clock(self) -> None:
        """Begin to count the session's time, unless that has begun.

        The start of Ray is not counted; while trials of another arm run, time passes for all.
        """
        self._clock.start()

    def suggest(self, trial_id: str, *, wait: bool = True) -> dict[str, Any] | str | None:
        """The next trial's configuration; None: none yet; FINISHED: there are no more.

        That is its number, its folder, its values and the key of its run, which Tune's texts and
        files hide. With `wait` it waits until the run is stored, unless another trial runs.
        """
        self.start_clock()
        if not self._queue and self._may_ask() and (asked := self._ask()):
            self._queue.append(asked)
        if not self._queue:
            return None if self._running else FINISHED
        pending = self._queue[0]
        limited = self._running or not wait
        futures.wait([pending.run], timeout=RUN_WAIT_SECONDS if limited else None)
        if not pending.run.done():
            return None
        key = SecretStr(pending.run.result().key or "")  # raises if the run could not be stored
        self._running[trial_id] = self._queue.pop(0)
        number = pending.number
        folder = trial_folder_name(number)
        return {"number": number, "folder": folder, "values": pending.values, "key": key}

    @property
    def left(self) -> int:
        """How many trials run, are to be retried or are still to be proposed; for other threads."""
        return (
            len(self._running) + len(self._queue) + (max(0, self._left) if self._may_ask() else 0)
        )

    def _may_ask(self) -> bool:
        tokens = self._tokens + sum(pending.tokens for pending in [*self._running.values()])
        seconds = self._clock.seconds
        return self._left > 0 and (
            self._unfinished > 0 or self._task.search.within_budget(tokens, seconds)
        )

    def _ask(self) -> PendingTrial | None:
        """The next trial, whose run is being stored; None, from now on, if there is no new one."""
        self._left -= 1
        self._unfinished -= 1
        proposal = self._proposals.next()
        if proposal is None:
            self._left = 0
            return None
        number = next(self._free_numbers) if proposal.number is None else proposal.number
        run, tokens = self._open_run(number, proposal.values), self._trained.get(number, 0)
        return PendingTrial(number, proposal, run, tokens=tokens)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report a trial's evaluations to the study, at the tokens trained on."""
        self._report(self._running[trial_id], result)

    def should_prune(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether the study's pruner would stop a trial, given this result."""
        pending = self._running[trial_id]
        self._report(pending, result)
        return bool(pending.trial.should_prune())

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Report to the study how a trial ended, or queue its retry if it crashed."""
        pending = self._running.pop(trial_id, None)
        if pending is None:
            return
        if error and pending.retries < self._task.base.failures.retries:
            pending.retries += 1
            self._queue.insert(0, pending)
            return
        outcome = TrialOutcome("failed") if error else TrialOutcome.of(result or {})
        if result and outcome.state != "failed":
            self._report(pending, result)
        self._tell(pending, outcome)
        self._tokens += pending.tokens

    def queued_retry(self, number: int) -> int:
        """The number, from 1, of a crashed trial's queued retry; 0 if none is queued."""
        return sum(pending.retries for pending in self._queue if pending.number == number)

    def _report(self, pending: PendingTrial, result: Mapping[str, Any]) -> None:
        pending.tokens = result["tokens"]
        for tokens, value in result["curve"]:
            if tokens not in pending.reported:  # a trial that starts again replays its history
                pending.reported.add(tokens)
                if self._task.search.second_objective is None:  # Optuna prunes by one objective
                    pending.trial.report(value, tokens)

    def _tell(self, pending: PendingTrial, outcome: TrialOutcome) -> None:
        """Report how a trial ended."""
        if outcome.state == "complete":
            second = second_value(self._task, pending.values, outcome.last_row)
            assert outcome.objective is not None
            values = [outcome.objective, *([] if second is None else [second])]
            self._proposals.tell(pending.proposal, TrialState.COMPLETE, values)
        elif outcome.state == "pruned":
            self._proposals.tell(pending.proposal, TrialState.PRUNED)
        else:
            self._proposals.tell(pending.proposal, TrialState.FAIL)
