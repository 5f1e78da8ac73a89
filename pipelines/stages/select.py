"""select: choose the best trial of the search, and its Pareto front if it has two objectives."""

from collections.abc import Mapping

from pipelines.engine.stage import Context, Outputs, Stage
from pipelines.experiment import Experiment
from pipelines.search.ranking import best_trial, pareto_front
from pipelines.search.resume import trials_of
from pipelines.tracking.schema import BEST_RUN_TAG, BEST_TAG, BEST_TRIAL_TAG, PARETO_TAG


def select(context: Context[Experiment], needs: Mapping[str, Outputs]) -> Outputs:
    """Choose the winner and mark it in MLflow, on its own run and on its search's."""
    task, store = context.config.search_task(), context.store
    search_run = needs["search"]["search_run"]
    trials = trials_of(store, search_run, task)
    winner = best_trial(trials)
    assert winner.objective is not None
    store.tag(search_run, {BEST_TRIAL_TAG: str(winner.number), BEST_RUN_TAG: winner.run_id})
    store.log_metrics(search_run, {f"best_{task.base.train.best_metric}": winner.objective})
    store.tag(winner.run_id, {BEST_TAG: "true"})
    front = pareto_front(trials, task.search.second_objective)
    for trial in front:
        store.tag(trial.run_id, {PARETO_TAG: "true"})
    return {
        "trial": winner.number,
        "run_id": winner.run_id,
        "values": winner.values,
        "objective": winner.objective,
        "front": [[t.number, t.objective, t.second] for t in front],
    }


STAGE = Stage(
    name="select",
    run=select,
    depends_on=("search",),
    config_keys=("train.best_metric", "search.second_objective"),
    modules=lambda _: ("pipelines.stages.select",),
)
