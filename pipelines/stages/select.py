"""select: choose the best trial of the search, and mark it and the Pareto front in MLflow."""

from collections.abc import Sequence

from pipelines.engine.results import StageResults
from pipelines.engine.stage import Context, Stage
from pipelines.experiment import Experiment
from pipelines.search.ranking import best_trial
from pipelines.search.results import Searched, Selected, read_numbers
from pipelines.search.resume import stored_search
from pipelines.tracking.schema import (
    BEST_METRIC,
    BEST_RUN_TAG,
    BEST_TAG,
    BEST_TRIAL_TAG,
    PARETO_TAG,
    SELECT_KIND,
)
from pipelines.tracking.store import Store
from pipelines.tracking.trials import StoredTrial


def select(context: Context[Experiment], needs: StageResults) -> Selected:
    """Choose the winner and mark it, on its own run and on its search's; mark the Pareto front."""
    task, store = context.config.search_task(), context.store
    searched = needs[Searched]
    search_run = searched.search_run
    stored = stored_search(store, search_run, task, any_code=True)
    selection = read_numbers(searched.selection)
    selected = [trial for trial in stored.trials if trial.number in selection]
    winner = best_trial(selected)
    assert winner.objective is not None
    store.tag(search_run, {BEST_TRIAL_TAG: str(winner.number), BEST_RUN_TAG: winner.run_id})
    best = BEST_METRIC.format(task.base.train.best_metric)
    store.log_metrics(search_run, {best: winner.objective})
    numbers = {number for number, _, _ in searched.front}
    front = [trial for trial in selected if trial.number in numbers]
    trials = [*stored.trials, *stored.outside]
    _mark(store, BEST_TAG, [winner], [trial for trial in trials if trial.best])
    _mark(store, PARETO_TAG, front, [trial for trial in trials if trial.pareto])
    return Selected(winner.number, winner.run_id, winner.values, winner.objective)


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


STAGE = Stage(
    name=SELECT_KIND,
    result=Selected,
    run=select,
    depends_on=("search",),
    config_keys=("train.best_metric",),
    modules=lambda _: ("pipelines.stages.select",),
)
