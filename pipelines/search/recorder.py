"""The only writer of a search's runs in the tracking store: its own, and one for each trial.

The stage search uses the functions before and after its trials run, and `run` the Recorder while
they do. The Recorder's writing is queued, in order, on a Writer's thread: Ray Tune's loop waits for
it only where a trial needs its run.
"""

import json
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

from pipelines.cluster.trial import TrialOutcome
from pipelines.compat.mlflow import KILLED
from pipelines.console.errors import ConfigError
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.data.splits import train_val_splits
from pipelines.engine.code import CodeDigests
from pipelines.engine.stage import Context
from pipelines.search.config import SearchTask
from pipelines.search.ranking import best_trial, pareto_front
from pipelines.search.results import Searched, write_numbers
from pipelines.search.resume import StoredSearch, trial_folder_name, trials_folder
from pipelines.search.searcher import Clock
from pipelines.search.space import FIXED, Space
from pipelines.search.study import save_study
from pipelines.storage.files import remove
from pipelines.storage.scratch import scratch_folder
from pipelines.tracking import descriptions
from pipelines.tracking.encoding import encode_param
from pipelines.tracking.schema import (
    BEST_METRIC,
    BEST_RUN_TAG,
    BEST_TAG,
    BEST_TRIAL_TAG,
    CODE_TAG,
    CORPUS_PARAM,
    INACTIVE_PARAM,
    INACTIVE_TAG,
    PARAMETERS_TAG,
    PARETO_TAG,
    REASON_TAG,
    SECONDS_METRIC,
    SEED_PARAM,
    STATE_TAG,
    STUDY_FILE,
    TOKENS_METRIC,
    TRIAL_KIND,
    TRIAL_TAG,
    VALUES_TAG,
)
from pipelines.tracking.store import Store
from pipelines.tracking.trials import STATUS_OF_STATE, StoredTrial, TrialRun
from pipelines.tracking.writer import Writer
from pipelines.training.history import STEP, TIME, Row

ELAPSED_LOG_INTERVAL_SECONDS = 5
"""Interval of storing the search's duration: a killed command loses at most so much of it."""


class Recorder:
    """Creates, writes and ends the runs of a search's trials, and stores the search's duration."""

    def __init__(
        self,
        context: Context[Any],
        task: SearchTask,
        corpus: PreparedCorpus,
        stored: Sequence[StoredTrial],
        previous_seconds: float,
        writer: Writer,
    ) -> None:
        """A recorder for one session of a search.

        Args:
            context: The search's stage: its store and its run.
            task: The search.
            corpus: The text that the trials read.
            stored: Trials of earlier sessions, whose runs are opened again.
            previous_seconds: Duration of the earlier sessions.
            writer: Writes, for the recorders of all searches that run at the same time.

        """
        self._context, self._task, self._corpus, self._space = context, task, corpus, Space(task)
        self._stored = {trial.number: trial for trial in stored}
        self._writer = writer
        self._code = CodeDigests()
        self._open: dict[int, Future[TrialRun]] = {}
        """The runs of trials that have not ended, by number."""
        self.clock = Clock(previous_seconds)
        self._logged = previous_seconds
        """The duration that was stored last."""

    def open_run(self, number: int, values: dict[str, Any]) -> Future[TrialRun]:
        """Queue the creation of a trial's run, or the opening of its stored one.

        The trial may start once the run is stored: a resumed search needs its parameters, number
        and values. The description and the corpus are stored after.
        """
        run = self._open[number] = self._writer.open(partial(self._open_run, number, values))
        self._writer.enqueue(partial(self._describe, run, number, values))
        return run

    def _open_run(self, number: int, values: dict[str, Any]) -> TrialRun:
        run_id = self._create_or_resume(number, values)
        return TrialRun(run_id, self._context.store.checkpoint_key(run_id))

    def _create_or_resume(self, number: int, values: dict[str, Any]) -> str:
        params = self._task.base.params | values
        inactive = {key: encode_param(params[key]) for key in self._space.inactive(values)}
        params |= dict.fromkeys(inactive, INACTIVE_PARAM)
        if stored := self._stored.get(number):
            # Its parameters stay as they were when other keys were searched.
            self._context.store.resume(stored.run_id, {} if stored.params else params)
            return stored.run_id
        tags = {
            TRIAL_TAG: str(number),
            VALUES_TAG: json.dumps(values),
            CODE_TAG: self._code[self._task.modules(values)],
        }
        with suppress(ConfigError):  # the values do not go together: the trial fails at once
            model = self._task.base.replace(values).model
            tags[PARAMETERS_TAG] = str(model.parameter_count())
        return self._context.store.create(
            TRIAL_KIND,
            f"{self._context.run_id}/{number}",
            f"{self._task.experiment} trial {number}",
            parent=self._context.run_id,
            params=params,
            tags=tags | ({INACTIVE_TAG: json.dumps(inactive)} if inactive else {}),
        )

    def _describe(self, run: Future[TrialRun], number: int, values: dict[str, Any]) -> None:
        context, run_id = self._context, run.result().run_id
        search = descriptions.run_link("the search", context.store.experiment_id, context.run_id)
        changes = context.own_params(self._task.base.params) | values
        note = descriptions.describe_trial(number, search, context.pipeline_run, changes)
        context.store.describe(note, run_id)
        training = train_val_splits(context.storage, self._corpus.fingerprint).train
        context.store.log_corpus(run_id, self._corpus, training=training)

    def write(self, number: int, rows: Sequence[Row]) -> None:
        """Queue rows of a trial's history; rows that are stored already are left out."""
        self._writer.write(self._open[number].result().run_id, rows)

    def end_trial(self, number: int, outcome: TrialOutcome) -> str:
        """Queue the end of a trial's run, and the removal of its checkpoints; returns the run's id.

        A failed trial has a reason and no objective.
        """
        run_id = self._open.pop(number).result().run_id
        tags, summary = {STATE_TAG: outcome.state}, None
        if outcome.objective is None:
            tags[REASON_TAG] = outcome.reason
        else:
            metric = BEST_METRIC.format(self._task.base.train.best_metric)
            summary = {key: outcome.last_row[key] for key in (STEP, TIME)}
            summary[metric] = outcome.objective
        self._writer.finish(run_id, STATUS_OF_STATE[outcome.state], tags, summary)
        if outcome.state != "failed":  # else it may be run again, from its checkpoints
            # After the end of the run: until then a resumed search would need the checkpoints.
            folder = trials_folder(self._context) / trial_folder_name(number)
            self._writer.enqueue(partial(remove, folder), run_id)
        return run_id

    def step_ended(self) -> None:
        """Store the search's duration if ELAPSED_LOG_INTERVAL_SECONDS have passed."""
        if self.clock.seconds > self._logged + ELAPSED_LOG_INTERVAL_SECONDS:
            self._log_seconds()

    def _log_seconds(self) -> None:
        self._logged = seconds = self.clock.seconds
        row = {STEP: round(seconds), SECONDS_METRIC: seconds}
        self._writer.enqueue(partial(self._context.store.log_metrics, self._context.run_id, row))

    def close(self) -> None:
        """Queue that the runs of unfinished trials are marked as KILLED, and the duration."""
        for run in self._open.values():
            self._writer.enqueue(partial(self._interrupt, run))
        self._log_seconds()

    def _interrupt(self, run: Future[TrialRun]) -> None:
        self._context.store.end(run.result().run_id, KILLED)


def log_search(context: Context[Any], task: SearchTask, corpus: PreparedCorpus) -> None:
    """Store a search's parameters, its description and its corpus, on its own run.

    MLflow changes no parameter, so they are those in which all trials of a search agree.
    """
    store, run_id, fingerprint = context.store, context.run_id, corpus.fingerprint
    fixed = {key: value for key, value in task.base.params.items() if key in FIXED}
    second = {"search.second_objective": task.search.second_objective}
    seed = {SEED_PARAM: task.base.seed}
    store.log_params(run_id, {CORPUS_PARAM: fingerprint, **seed, **fixed, **second})
    store.describe(descriptions.describe_search(run_id, task.base.train.tokens), run_id)
    splits = train_val_splits(context.storage, fingerprint)
    store.log_corpus(run_id, corpus, training=splits.train, validation=splits.validation)


def end_runs(store: Store, ended: Sequence[StoredTrial]) -> None:
    """End the runs of trials with a state but not its status, if a process was killed in between.

    The state is written before the status.
    """
    for trial in ended:
        status = STATUS_OF_STATE[str(trial.state)]
        if trial.status != status:
            store.end(trial.run_id, status)


def log_summary(context: Context[Any], task: SearchTask, stored: StoredSearch) -> Searched:
    """Store what came out of a search, on its run and its trials'; returns it as the result.

    Stored are the number of trials by state, the winner, the Pareto front and Optuna's study.
    """
    store, run_id, ended = context.store, context.run_id, stored.ended
    counts = {state: sum(trial.state == state for trial in ended) for state in STATUS_OF_STATE}
    winner, front = best_trial(ended), pareto_front(ended, task.search.second_objective)
    store.tag(run_id, {BEST_TRIAL_TAG: str(winner.number), BEST_RUN_TAG: winner.run_id})
    every = [*stored.trials, *stored.outside]
    _mark(store, BEST_TAG, [winner], [trial for trial in every if trial.best])
    _mark(store, PARETO_TAG, front, [trial for trial in every if trial.pareto])
    tokens = sum(trial.tokens for trial in ended)
    metrics: dict[str, float] = {TOKENS_METRIC: tokens, **counts}
    if winner.objective is not None:
        metrics[BEST_METRIC.format(task.base.train.best_metric)] = winner.objective
    store.log_metrics(run_id, metrics)
    with scratch_folder() as scratch:
        path = scratch / STUDY_FILE
        save_study(path, task, ended)
        store.log_file(run_id, path)
    return Searched(
        search_run=run_id,
        trials=counts,
        front=tuple(
            (trial.number, trial.objective, trial.second)
            for trial in front
            if trial.objective is not None and trial.second is not None
        ),
        selection=write_numbers(trial.number for trial in ended),
    )


def _mark(
    store: Store, tag: str, trials: Sequence[StoredTrial], before: Sequence[StoredTrial]
) -> None:
    """Set a tag on the runs of these trials, and remove it where it was before."""
    wanted = {trial.run_id for trial in trials}
    for trial in before:
        if trial.run_id not in wanted:
            store.untag(trial.run_id, tag)
    for trial in trials:
        store.tag(trial.run_id, {tag: "true"})
