"""The stages of an experiment's DAG, a module each, and what fit and train share.

The commands sweep.py and train.py run them with `pipelines.engine`.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from pipelines.experiment import Experiment
from pipelines.storage.location import storage_folder

if TYPE_CHECKING:
    from pipelines.engine.stage import Stage
    from pipelines.stages.corpus import CorpusStage


def sweep_stages(
    corpus: "CorpusStage", *, retry_failed: bool = False
) -> list["Stage[Experiment, Any]"]:
    """The stages of a sweep over a corpus, which runs the failed trials again if wanted."""
    from pipelines.stages import evaluate, fit, promote, register, report, sample, search, select

    others = (select, fit, evaluate, register, promote, sample, report)
    searched = search.search_stage(retry_failed=retry_failed)
    return [corpus.stage, searched, *(module.STAGE for module in others)]


def resolve_start(
    experiment: Experiment, *, searched: Collection[str] = (), write: bool = True
) -> Experiment:
    """The experiment with `train.start_from` as a copy in storage, made unless `write` is false.

    Raises ConfigError if the weights cannot be found, or do not suit the model or one of the
    `searched` keys.
    """
    source = experiment.train.start_from
    if source is None:
        return experiment
    from pipelines.registry.initial_weights import resolve_initial_weights

    copy = resolve_initial_weights(
        source,
        experiment.model,
        storage_folder(experiment.storage),
        registered=experiment.promote.model,
        searched=searched,
        write=write,
    )
    return experiment.replace({"train.start_from": copy})
