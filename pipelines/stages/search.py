"""search: run the trials of the search that are missing, and summarize all of them.

The trials are read from the tracking store before and after: a search that was killed continues
with the same command, and one that is complete runs nothing. A search with more trials, or another
space, continues with those of its trials that lie in the space.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pipelines.console.errors import GoneError, PipelineError
from pipelines.console.text import counted
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.engine.results import StageResults
from pipelines.engine.stage import Context, Ended, Growth, Instance, Stage
from pipelines.experiment import Experiment
from pipelines.search.results import Searched
from pipelines.search.resume import (
    READING,
    StoredSearch,
    join,
    reopen,
    stored_search,
    trials_folder,
)
from pipelines.search.space import FIXED, bounded
from pipelines.storage.files import remove
from pipelines.tracking.schema import BEST_RUN_TAG, SEARCH_KIND, SECONDS_METRIC, TRIAL_KIND
from pipelines.tracking.store import Store

if TYPE_CHECKING:  # with Ray Tune and PyTorch
    from pipelines.search.run import Session


def search(
    context: Context[Experiment], needs: StageResults, *, retry_failed: bool = False
) -> Searched:
    """Run the missing trials; returns which trials there are, and their Pareto front.

    With `retry_failed`, those that have failed are run again.
    """
    (session,) = _run([_prepare(context, needs, retry_failed=retry_failed)])
    return _conclude(session)


def search_together(
    instances: Sequence[Instance[Experiment]],
    ended: Ended[Searched],
    *,
    retry_failed: bool = False,
) -> None:
    """The same for several arms, whose trials share one Tune run."""
    sessions = [_prepare(*instance, retry_failed=retry_failed) for instance in instances]
    for place, session in enumerate(_run(sessions)):
        try:
            outcome: Searched | Exception = _conclude(session)
        except PipelineError as error:
            outcome = error
        ended(place, outcome)


def _prepare(context: Context[Experiment], needs: StageResults, *, retry_failed: bool) -> "Session":
    """The search as it is in the tracking store."""
    from pipelines.search.recorder import end_runs, log_search
    from pipelines.search.run import Session, prefix

    task, corpus, store = context.config.search_task(), needs[PreparedCorpus], context.store
    log = lambda text: context.progress.log(f"  {prefix(context)}{text}")  # noqa: E731
    with _shown(context, READING):
        joined = join(store, context.run_id, task)
        if retry_failed:
            before = stored_search(store, context.run_id, task, evaluations=False)
            for trial in before.failed:
                reopen(store, trial)
            count = max(task.search.trial_count, len(before.ended))
            task = replace(task, search=task.search.replace({"trials": count}))
        stored = stored_search(store, context.run_id, task)
        wanted = task.search.trial_count
        task = bounded(task, stored.trials)
        end_runs(store, stored.ended)
        log_search(context, task, corpus)
        seconds = _seconds(context)
    if joined:
        log(f"joined by {counted(joined, 'trial')} of earlier searches in the space")
    if stored.trials:
        failed = f", {len(stored.failed)} of them failed" if stored.failed else ""
        total = max(len(stored.ended), task.search.trial_count)
        log(f"done: {len(stored.ended)} of {counted(total, 'trial')}{failed}")
    if stored.outside:
        log(f"outside the space: {counted(len(stored.outside), 'earlier trial')}")
    if task.search.trial_count < wanted:
        trials = counted(task.search.trial_count, "trial")
        log(f"the space has no more valid points than for {trials}")
    return Session(context, task, corpus, stored, seconds)


def _seconds(context: Context[Experiment]) -> float:
    """What the search has taken, over all its sessions."""
    seconds = context.store.history(context.run_id, SECONDS_METRIC).values()
    return max(seconds, default=0.0)


def _run(sessions: Sequence["Session"]) -> list["Session"]:
    """Run the missing trials; returns the searches with the trials that there are then."""
    from pipelines.search.run import run_trials  # with Ray Tune and PyTorch

    missing = [session.has_trials_to_run for session in sessions]
    if not any(missing):
        return [*sessions]
    run_trials([session for session, one in zip(sessions, missing, strict=True) if one])
    with _shown(sessions[0].context, READING):
        return [
            session.read_again() if ran else session
            for session, ran in zip(sessions, missing, strict=True)
        ]


def _conclude(session: "Session") -> Searched:
    """Store what came out of a search. Raises PipelineError if that is nothing."""
    from pipelines.search.recorder import log_summary

    _require_results(session)
    stored = session.stored
    if not stored.unfinished and not stored.failed:  # which may go on from their checkpoints
        remove(trials_folder(session.context))
    with _shown(session.context, "storing what came out of the search"):
        return log_summary(session.context, session.task, stored)


def _shown(context: Context[Experiment], text: str) -> AbstractContextManager[None]:
    """Shows a text, with the time, during a block: of thousands of trials it takes minutes."""
    return context.progress.waiting(f"search: {text}", stage=SEARCH_KIND)


def _require_results(session: "Session") -> None:
    """Raise PipelineError if a trial has not ended, or none has a result.

    Of an arm of a study it is a result that all diverged, as it is of a training.
    """
    from pipelines.search.run import prefix

    stored, arm = session.stored, session.context.instance
    ended, total = stored.ended, session.task.search.trial_count
    if len(ended) < min(total, len(stored.trials)):  # SIGUSR1 ends Tune's loop, for example
        raise PipelineError("search: stopped early; run the same command again to go on")
    if not ended:
        if session.task.search.max_seconds is None:
            raise PipelineError("search: no valid point of search.space was found")
        raise PipelineError("search: no trial began within search.max_seconds; expected more")
    tokens, seconds = stored.tokens, _seconds(session.context)
    if len(ended) < total and session.task.search.within_budget(tokens, seconds):
        text = f"ended after {len(ended)} of {counted(total, 'trial')}: no further valid point"
        session.context.progress.log(f"  {prefix(session.context)}{text} was found")
    if arm and all(trial.diverged for trial in ended):
        session.context.progress.log(f"  {arm}: every trial diverged; the last to do so is trained")
    elif all(trial.state == "failed" for trial in ended):
        reasons = "\n".join(f"  trial {trial.number}: {trial.reason}" for trial in ended)
        raise PipelineError(f"search: every trial failed; --retry-failed tries again\n{reasons}")


def _verify(store: Store, searched: Searched) -> None:
    """Refuse a search that has no trial left: nothing could be selected.

    Those that were deleted run again, those that another search was joined by are taken back.
    """
    best = store.client.get_run(searched.search_run).data.tags.get(BEST_RUN_TAG)
    if best and not store.children(searched.search_run, TRIAL_KIND):
        is_gone = store.client.state_of(best) in (None, "DELETED")
        raise GoneError(
            "the runs of its trials were deleted" if is_gone else "another search has its trials"
        )


def search_stage(*, retry_failed: bool = False) -> Stage[Experiment, Searched]:
    """The stage, which runs its failed trials again if wanted."""

    def stored(store: Store, run_id: str, config: Experiment) -> StoredSearch:
        return stored_search(store, run_id, config.search_task(), evaluations=False)

    def usable(store: Store, run_id: str, config: Experiment) -> int:
        return len(stored(store, run_id, config).trials)

    def unfinished(store: Store, run_id: str, config: Experiment) -> str:
        failed = stored(store, run_id, config).failed if retry_failed else []
        return f"failed trials run again: {len(failed)}" if failed else ""

    return Stage(
        name=SEARCH_KIND,
        result=Searched,
        run=partial(search, retry_failed=retry_failed),
        run_together=partial(search_together, retry_failed=retry_failed),
        depends_on=("corpus",),
        config_keys=("seed", "model", "train", "search"),
        modules=lambda config: ("pipelines.stages.search", *config.model_modules()),
        verify=_verify,
        growth=Growth(("seed", *sorted(FIXED), "search.second_objective"), usable, unfinished),
        over=("arm",),
    )
