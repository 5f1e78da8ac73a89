"""select: choose the best trial of the search."""

from pipelines.console.errors import GoneError
from pipelines.engine.results import StageResults
from pipelines.engine.stage import Context, Stage
from pipelines.experiment import Experiment
from pipelines.search.ranking import best_trial
from pipelines.search.results import Searched, Selected, read_numbers
from pipelines.search.resume import READING, stored_search
from pipelines.tracking.schema import SELECT_KIND
from pipelines.tracking.store import Store


def select(context: Context[Experiment], needs: StageResults) -> Selected:
    """Choose the winner among the trials that the search consists of."""
    searched, task = needs[Searched], context.config.search_task()
    with context.progress.waiting(f"select: {READING}", stage=SELECT_KIND):
        stored = stored_search(context.store, searched.search_run, task, any_code=True)
    numbers = read_numbers(searched.selection)
    winner = best_trial([trial for trial in stored.trials if trial.number in numbers])
    return Selected(winner.number, winner.run_id, winner.values, winner.objective)


def _verify(store: Store, selected: Selected) -> None:
    """Refuse a winner whose run was deleted: another trial is chosen then, of those there are."""
    if store.client.state_of(selected.run_id) in (None, "DELETED"):
        raise GoneError(f"the run of the winner, trial {selected.trial}, was deleted")


STAGE = Stage(
    name=SELECT_KIND,
    result=Selected,
    run=select,
    depends_on=("search",),
    config_keys=("model", "train", "search.space"),
    modules=lambda _: ("pipelines.stages.select",),
    verify=_verify,
    over=("arm",),
)
