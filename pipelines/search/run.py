"""One session of a search: runs its missing trials with Ray Tune.

Used by the stage search. The study proposes trials through the searcher, Tune runs them, and its
events are passed to the recorder, which writes to the tracking store, and to the progress.
"""

import math
import time
from contextlib import closing
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from pipelines.cluster.capacity import worker_bundle
from pipelines.cluster.connection import connect
from pipelines.cluster.room import WithinRoom, watched_room
from pipelines.compat.optuna import quiet
from pipelines.compat.ray import (
    HEAD_NODE,
    NotPickled,
    crash_line,
    exit_detail,
    trial_error,
    without_aws_keys,
)
from pipelines.console.errors import StorageError
from pipelines.console.secrets import redact
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.data.splits import train_val_splits
from pipelines.engine.stage import Context
from pipelines.search.config import SearchTask
from pipelines.search.progress import SearchProgress
from pipelines.search.recorder import Recorder
from pipelines.search.resume import StoredSearch, earlier_trials, trials_folder
from pipelines.search.schedulers import scheduler_of
from pipelines.search.searcher import StudySearcher
from pipelines.search.study import build_study
from pipelines.search.trial import Trial, TrialOutcome
from pipelines.storage.scratch import scratch_folder
from pipelines.training.history import TOKENS_PER_SECOND

HEAD_NODE_SHARE = 0.001
"""Share of the head node requested for a trial with several workers. The trial's own process
requests no CPU: it would wait for its own workers' CPUs."""
MAX_REASON_CHARACTERS = 1000


def run_trials(
    context: Context[Any],
    task: SearchTask,
    corpus: PreparedCorpus,
    stored: StoredSearch,
    previous_seconds: float,
) -> None:
    """Run the missing trials of a search.

    Args:
        context: The search's stage.
        task: The search.
        corpus: The text that the trials read.
        stored: The trials of its earlier sessions.
        previous_seconds: Duration of its earlier sessions.

    Raises:
        StorageError: If a checkpoint cannot be written.
        PipelineError: If something could not be stored in the tracking store.

    """
    warm_start = earlier_trials(task, corpus.fingerprint, context.run_id)
    if warm_start:
        context.progress.log(f"  warm start with {len(warm_start)} trials of earlier searches")
    with quiet():
        recorder = Recorder(context, task, corpus, stored.trials, previous_seconds)
        progress = SearchProgress(task, stored.trials, context.progress)
        searcher = StudySearcher(
            build_study(task, stored.trials, warm_start),
            task,
            open_run=recorder.open_run,
            stored=stored,
            previous_seconds=previous_seconds,
            left_out=progress.left_out,
        )
        events = TrialEvents(task, searcher, recorder, progress)
        with context.progress.working("starting Ray"), closing(recorder):
            _run_tuner(context, task, corpus, stored, searcher, events)
        progress.summarize()


def _run_tuner(
    context: Context[Any],
    task: SearchTask,
    corpus: PreparedCorpus,
    stored: StoredSearch,
    searcher: StudySearcher,
    events: "TrialEvents",
) -> None:
    resources = task.base.resources
    connect(dashboard=resources.max_workers > 1)
    trainable = tune.with_parameters(
        Trial,
        base=task.base,
        corpus=train_val_splits(context.storage, corpus.fingerprint),
        folder=trials_folder(context),
    )
    room = watched_room(
        resources, context.progress, name=context.run_id, left=lambda: searcher.left
    )
    with scratch_folder() as scratch, without_aws_keys(), room as found:
        tuner = tune.Tuner(
            tune.with_resources(trainable, _request(task)),
            tune_config=tune.TuneConfig(
                search_alg=WithinRoom(searcher, found),
                scheduler=scheduler_of(task, stored.trials, searcher.should_prune),
                num_samples=-1,  # until the searcher returns FINISHED
                reuse_actors=True,
                trial_dirname_creator=_trial_name,
                trial_name_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=context.run_id,
                storage_path=scratch,  # for Tune's own snapshots, which are never read
                callbacks=[events],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except tune.TuneError:
            if events.storage_error is None:
                raise
            raise events.storage_error from None


def _request(task: SearchTask) -> tune.PlacementGroupFactory:
    if task.base.resources.max_workers > 1:
        return tune.PlacementGroupFactory([{HEAD_NODE: HEAD_NODE_SHARE}])
    return tune.PlacementGroupFactory([worker_bundle(task.base.resources)])


def _trial_name(trial: TuneTrial) -> str:
    return f"trial-{trial.config['number']:04d}-{trial.trial_id}"


class TrialEvents(NotPickled, tune.Callback):
    """Passes the events of Tune's loop to the recorder and the progress."""

    storage_error: StorageError | None = None
    """The error that ended the search: no other trial could write its checkpoints either."""

    def __init__(
        self,
        task: SearchTask,
        searcher: StudySearcher,
        recorder: Recorder,
        progress: SearchProgress,
    ) -> None:
        self._task, self._searcher = task, searcher
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
        """Store the search's duration, between evaluations too."""
        self._recorder.log_elapsed()

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Record a trial that used its budget, diverged, or was stopped by the scheduler."""
        self._end(trial, TrialOutcome.of(trial.last_result))

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Record a trial that crashed, unless the searcher retries it.

        Ends the search if a checkpoint could not be written.
        """
        number, error = trial.config["number"], trial_error(trial)
        if isinstance(error, StorageError):
            self.storage_error = StorageError(f"trial {number}: {error}")
            raise self.storage_error
        silent = time.monotonic() - self._last_report.pop(number, math.inf)
        reason = _timeout_reason(self._task, silent) or crash_reason(error)
        if retry := self._searcher.queued_retry(number):
            self._progress.crashed(number, reason, retry)
        else:
            self._end(trial, TrialOutcome("failed", reason=reason))

    def _end(self, trial: TuneTrial, outcome: TrialOutcome) -> None:
        number, values = trial.config["number"], trial.config["values"]
        run_id = self._recorder.end_trial(number, outcome)
        self._progress.ended(number, values, run_id, outcome)


def _timeout_reason(task: SearchTask, silent_seconds: float) -> str:
    """The reason of a trial that exceeded failures.timeout_seconds; empty if it did not.

    The watchdog ends the process of a trial with one worker; of others Ray Train reports the end.
    """
    limit = task.base.failures.timeout_seconds
    if task.base.resources.max_workers > 1 or not limit or silent_seconds <= limit:
        return ""
    return f"no evaluation within failures.timeout_seconds = {limit}"


def crash_reason(error: BaseException) -> str:
    """Why a trial crashed, in one line: `MemoryError: ...`, or how its process died."""
    if detail := exit_detail(error):
        return f"its process died: {detail}"
    return redact(crash_line(error))[:MAX_REASON_CHARACTERS]
