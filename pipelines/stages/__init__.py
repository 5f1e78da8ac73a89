"""The stages of an experiment's DAG, a module each, and what fit and train share.

The commands sweep.py and train.py run them with `pipelines.engine`.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipelines.experiment import Experiment
from pipelines.storage.location import storage_folder
from pipelines.training.config import COMPILE, MIN_BFLOAT16_WIDTH, Resources

if TYPE_CHECKING:
    from pipelines.engine.stage import Stage
    from pipelines.stages.corpus import CorpusStage

PRECISION = "train.precision"


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


def resolve_precision(experiment: Experiment, *resources: Resources) -> Experiment:
    """The experiment with one `train.precision` for all its trainings in place of auto.

    It is that of GPUs if all of the `resources` have one, else the one for the smallest width on
    this machine's processor.
    """
    given = [changes.get(PRECISION) for changes in experiment.arms.values()]
    if "auto" not in [experiment.train.precision, *given]:
        return experiment
    precision = _precision(experiment, on_gpu=all(one.gpus_per_worker for one in resources))
    arms = {
        name: {k: precision if (k, v) == (PRECISION, "auto") else v for k, v in changes.items()}
        for name, changes in experiment.arms.items()
    }
    train = experiment.train
    if train.precision == "auto":
        train = train.model_copy(update={"precision": precision})
    return experiment.model_copy(update={"train": train, "arms": arms})


def resolve_compile(experiment: Experiment) -> Experiment:
    """The experiment with true for a `fit.compile` of null where that means it."""
    fit = experiment.fit
    if fit.compile is not None or experiment.is_study or COMPILE in experiment.search.space:
        return experiment
    if not fit.compiled_by_itself(experiment.train):
        return experiment
    return experiment.model_copy(update={"fit": fit.model_copy(update={"compile": True})})


def _precision(experiment: Experiment, *, on_gpu: bool) -> str:
    widths: list[Any] = []
    for arm in experiment.by_arm.values():
        searched = arm.search.space.get("model.dim")
        if searched is None or searched.when:  # else the base's width is trained by no trial
            widths.append(arm.model.dim)
        widths += searched.examples if searched else []
    width = min(widths)
    if width < MIN_BFLOAT16_WIDTH and not on_gpu:
        return "float32"  # without PyTorch, which takes seconds to import
    import torch

    from pipelines.training import device

    return device.resolve_precision("auto", width, torch.device("cuda" if on_gpu else "cpu"))


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
    train = experiment.train.model_copy(update={"start_from": copy})
    # Not `replace`: an arm is not checked by itself, some options are for others.
    return experiment.model_copy(update={"train": train})
