"""One session of a search, or of the searches of a study's arms: runs their missing trials.

Used by the stage search. Each study proposes trials through a searcher, `pipelines.cluster.jobs`
runs them with Ray Tune, and its events are passed to a recorder, which writes to the tracking
store, and to the progress.
"""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pipelines.cluster.jobs import JobGroup, run_jobs
from pipelines.cluster.trial_events import TrialEvents
from pipelines.compat.optuna import quiet
from pipelines.console.text import counted
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.data.splits import train_val_splits
from pipelines.engine.code import require_same_code
from pipelines.engine.stage import Context
from pipelines.search.config import SearchTask
from pipelines.search.jobs_progress import JobsProgress
from pipelines.search.progress import SearchProgress
from pipelines.search.recorder import Recorder
from pipelines.search.resume import (
    READING,
    StoredSearch,
    earlier_trials,
    stored_search,
    trials_folder,
)
from pipelines.search.schedulers import scheduler_of
from pipelines.search.searcher import StudySearcher
from pipelines.search.study import build_study
from pipelines.tracking.tensorboard import event_files
from pipelines.tracking.writer import Writer


@dataclass(frozen=True)
class Session:
    """A search as it is in the tracking store at the start of a session."""

    context: Context[Any]
    """Its stage."""
    task: SearchTask
    corpus: PreparedCorpus
    """The text that the trials read."""
    stored: StoredSearch
    """The trials of its earlier sessions."""
    previous_seconds: float
    """Duration of its earlier sessions."""

    @property
    def has_trials_to_run(self) -> bool:
        """Whether trials have begun and not ended, or are missing and within the budgets."""
        ended, begun = len(self.stored.ended), len(self.stored.trials)
        within = self.task.search.within_budget(self.stored.tokens, self.previous_seconds)
        return ended < self.task.search.trial_count and (begun > ended or within)

    def read_again(self) -> "Session":
        """The same with the trials that are stored now."""
        stored = stored_search(self.context.store, self.context.run_id, self.task)
        return replace(self, stored=stored)


def run_trials(sessions: Sequence[Session]) -> None:
    """Run the missing trials of searches of one corpus, all in one Tune run.

    Raises:
        StorageError: If a checkpoint cannot be written.
        PipelineError: If something could not be stored in the tracking store.

    """
    context, task = sessions[0].context, sessions[0].task
    corpus = train_val_splits(context.storage, sessions[0].corpus.fingerprint)
    events = event_files(task.storage, task.experiment, enabled=task.tensorboard)
    with quiet():
        writer = Writer(context.store, events)
        jobs = JobsProgress(context.progress, stage="search", unit="trials")
        recorders = [_recorder(session, writer) for session in sessions]
        shown = [_progress(session, jobs) for session in sessions]
        with context.progress.waiting(f"search: {READING}", stage="search"):
            groups = {
                session.context.instance: _group(session, recorder, progress)
                for session, recorder, progress in zip(sessions, recorders, shown, strict=True)
            }
        with context.progress.working("starting Ray"), closing(writer), ExitStack() as stack:
            for recorder in recorders:
                stack.callback(recorder.close)
            run_jobs(groups, corpus, context.progress, key="resources", name=context.run_id)
        for progress in shown:
            progress.summarize()


def _recorder(session: Session, writer: Writer) -> Recorder:
    stored, seconds = session.stored.trials, session.previous_seconds
    return Recorder(session.context, session.task, session.corpus, stored, seconds, writer)


def _progress(session: Session, jobs: JobsProgress) -> SearchProgress:
    return SearchProgress(session.task, session.stored.trials, jobs, session.context.instance)


def _group(session: Session, recorder: Recorder, progress: SearchProgress) -> JobGroup:
    context, task, stored = session.context, session.task, session.stored
    warm_start = earlier_trials(task, session.corpus.fingerprint, context.run_id)
    if warm_start:
        text = f"warm start with {counted(len(warm_start), 'trial')} of earlier searches"
        context.progress.log(f"  {prefix(context)}{text}")
    modules = ("pipelines.cluster.trial", *context.config.model_modules())
    searcher = StudySearcher(
        build_study(task, stored.trials, warm_start),
        task,
        open_run=recorder.open_run,
        stored=stored,
        clock=recorder.clock,
        left_out=progress.left_out,
    )
    return JobGroup(
        base=task.base,
        folder=trials_folder(context),
        source=searcher,
        require_same_code=partial(require_same_code, modules, context.sources),
        scheduler=scheduler_of(task, stored.trials, searcher.should_prune),
        events=TrialEvents(task.base, searcher.queued_retry, recorder, progress),
    )


def prefix(context: Context[Any]) -> str:
    """Of a line about a search: its arm, if there are several."""
    return f"{context.instance}: " if context.instance else ""
