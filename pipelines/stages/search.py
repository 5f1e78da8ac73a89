"""search: Ray Tune runs the trials that Optuna proposes, MLflow records them.

The tracking store is the truth. A trial's run is made, with its parameters, before the trial
starts; a search that was killed is rebuilt from these runs and goes on with what is missing.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from pipelines.console.errors import PipelineError
from pipelines.data.splits import train_val_splits
from pipelines.engine.stage import Context, Outputs, Stage
from pipelines.experiment import Experiment
from pipelines.search.config import SearchTask
from pipelines.search.recorder import STATUSES
from pipelines.search.resume import comparable_params, stored_trials, trials_folder
from pipelines.search.run import run_trials
from pipelines.search.searcher import within_budget
from pipelines.search.study import STATES, save_study
from pipelines.stages.recorded_training import TRAINING_SOURCES
from pipelines.storage.files import remove
from pipelines.tracking import descriptions, schema


def search(context: Context[Experiment], needs: Mapping[str, Outputs]) -> Outputs:
    """Run what is missing of the search; returns how many trials ended how."""
    task = context.config.search_task()
    stored = stored_trials(context, task)
    for trial in stored:
        if trial.state is not None and trial.status != STATUSES[trial.state]:
            context.store.end(trial.run_id, STATUSES[trial.state])  # killed before it could
    fingerprint = needs["corpus"]["fingerprint"]
    done = [trial for trial in stored if trial.state is not None]
    spent = sum(trial.tokens for trial in done)
    seconds = max(context.store.history(context.run_id, "seconds").values(), default=0.0)
    params = comparable_params(task, fingerprint) | {"search": task.search.model_dump()}
    context.store.log_params(context.run_id, params)
    _describe(context, task)
    paths = train_val_splits(context.storage, fingerprint)
    splits = {"training": paths.train, "validation": paths.validation}
    context.store.log_corpus(context.run_id, needs["corpus"], **splits)
    if stored:
        total = task.search.trial_count
        context.progress.log(f"  {len(done)} of {total} trials are done")
    begun, complete = len(stored) > len(done), len(done) == task.search.trial_count
    if begun or (not complete and within_budget(task.search, spent, seconds)):
        run_trials(context, task, needs["corpus"], stored, seconds)
    trials = stored_trials(context, task)
    if any(trial.state is None for trial in trials):  # by SIGUSR1, which ends Tune's loop
        raise PipelineError("search: stopped early; run the same command again to go on")
    if not trials:
        raise PipelineError("search: no trial began within search.max_seconds; expected more")
    failed = [t for t in trials if t.state == "failed"]
    if len(failed) == len(trials):
        reasons = "\n".join(f"  trial {t.number}: {t.reason}" for t in failed)
        raise PipelineError(f"search: every trial failed; --fresh tries again\n{reasons}")
    remove(trials_folder(context))
    counts = {state: sum(trial.state == state for trial in trials) for state in STATES}
    context.store.log_metrics(
        context.run_id, {"tokens": sum(trial.tokens for trial in trials), **counts}
    )
    with tempfile.TemporaryDirectory() as scratch:
        save_study(Path(scratch) / schema.STUDY_FILE, task, trials)
        context.store.log_file(context.run_id, Path(scratch) / schema.STUDY_FILE)
    return {"search_run": context.run_id, "trials": counts}


def _describe(context: Context[Experiment], task: SearchTask) -> None:
    text = descriptions.describe_search(
        context.run_id,
        list(task.search.space),
        trials=task.search.trial_count,
        tokens=task.base.train.tokens,
        sampler=task.search.sampler.name,
        scheduler=task.search.scheduler.name,
    )
    context.store.describe(text, context.run_id)


STAGE = Stage(
    name="search",
    run=search,
    depends_on=("corpus",),
    config_keys=("seed", "model", "train", "search"),
    sources=(*TRAINING_SOURCES, "pipelines/search", "pipelines/stages/search.py"),
)
