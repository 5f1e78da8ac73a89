"""The stages of an experiment's DAG, a module each, and what fit and train share.

The commands sweep.py and train.py run them with `pipelines.engine`.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipelines.experiment import Experiment
from pipelines.storage.location import storage_folder

if TYPE_CHECKING:
    from pipelines.engine.stage import Stage
    from pipelines.stages.corpus import CorpusStage


def sweep_stages(
    corpus: "CorpusStage", experiment: Experiment | None = None, *, retry_failed: bool = False
) -> list["Stage[Experiment, Any]"]:
    """The stages of a sweep over a corpus, which runs the failed trials again if wanted.

    Those of the experiment; without one, all that there are.
    """
    from pipelines.stages import evaluate, fit, promote, register, report, sample, search, select
    from pipelines.stages.study import compare, probe

    searched = search.search_stage(retry_failed=retry_failed)
    others = (select, probe, fit, evaluate, compare, register, promote, sample, report)
    absent = set[str]()
    if experiment is not None:
        absent |= set() if experiment.arms else {probe.STAGE.name}
        absent |= set() if experiment.is_study else {compare.STAGE.name}
    return [
        replace(stage, depends_on=tuple(name for name in stage.depends_on if name not in absent))
        for stage in (corpus.stage, searched, *(module.STAGE for module in others))
        if stage.name not in absent
    ]


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
