"""search: run the trials of the search that are missing, and summarize all of them.

The trials are read from the tracking store before and after: a search that was killed continues
with the same command, and one that is complete runs nothing.
"""

from collections.abc import Mapping, Sequence

from pipelines.console.errors import PipelineError
from pipelines.engine.stage import Context, Outputs, Stage
from pipelines.experiment import Experiment
from pipelines.search.recorder import end_runs, log_search, log_summary
from pipelines.search.resume import StoredTrial, trials_folder, trials_of
from pipelines.search.run import run_trials
from pipelines.storage.files import remove


def search(context: Context[Experiment], needs: Mapping[str, Outputs]) -> Outputs:
    """Run the missing trials; returns how many trials ended in each state."""
    task, corpus = context.config.search_task(), needs["corpus"]
    stored = trials_of(context.store, context.run_id, task)
    ended = [trial for trial in stored if trial.state is not None]
    end_runs(context.store, ended)
    log_search(context, task, corpus)
    total, tokens = task.search.trial_count, sum(trial.tokens for trial in ended)
    seconds = max(context.store.history(context.run_id, "seconds").values(), default=0.0)
    if stored:
        context.progress.log(f"  {len(ended)} of {total} trials are done")
    may_start = len(ended) < total and task.search.within_budget(tokens, seconds)
    if len(ended) < len(stored) or may_start:
        run_trials(context, task, corpus, stored, seconds)
    trials = trials_of(context.store, context.run_id, task)
    _require_results(trials)
    remove(trials_folder(context))
    return {"search_run": context.run_id, "trials": log_summary(context, task, trials)}


def _require_results(trials: Sequence[StoredTrial]) -> None:
    """Raise PipelineError if a trial has not ended, or none has a result."""
    if any(trial.state is None for trial in trials):  # SIGUSR1 ends Tune's loop, for example
        raise PipelineError("search: stopped early; run the same command again to go on")
    if not trials:
        raise PipelineError("search: no trial began within search.max_seconds; expected more")
    if all(trial.state == "failed" for trial in trials):
        reasons = "\n".join(f"  trial {trial.number}: {trial.reason}" for trial in trials)
        raise PipelineError(f"search: every trial failed; --fresh tries again\n{reasons}")


STAGE = Stage(
    name="search",
    run=search,
    depends_on=("corpus",),
    config_keys=("seed", "model", "train", "search"),
    modules=lambda config: ("pipelines.stages.search", *config.model_modules()),
)
