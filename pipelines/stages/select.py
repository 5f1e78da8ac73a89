"""select: the best trial of the search, among equals."""

from collections.abc import Mapping

from pipelines.engine.stage import Context, Outputs, Stage
from pipelines.experiment import Experiment
from pipelines.search.ranking import best_trial, pareto_front
from pipelines.search.resume import stored_trials


def select(context: Context[Experiment], needs: Mapping[str, Outputs]) -> Outputs:
    """Choose the winner and mark it, in MLflow, on itself and on its search."""
    metric = context.config.train.best_metric
    search_run = needs["search"]["search_run"]
    trials = stored_trials(context, context.config.search_task(), search_run)
    winner = best_trial(trials)
    assert winner.objective is not None
    context.store.tag(
        search_run, {"dca.best_trial": str(winner.number), "dca.best_run": winner.run_id}
    )
    context.store.log_metrics(search_run, {f"best_{metric}": winner.objective})
    context.store.tag(winner.run_id, {"dca.best": "true"})
    front = pareto_front(trials, context.config.search.second_objective)
    for trial in front:
        context.store.tag(trial.run_id, {"dca.front": "true"})
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
    sources=("pipelines/search/ranking.py", "pipelines/stages/select.py"),
)
