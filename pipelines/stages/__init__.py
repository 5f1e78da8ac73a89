"""The nodes of an experiment's DAG, one file each; the commands sweep.py and train.py run them."""

from pipelines.engine.stage import Stage
from pipelines.stages import (
    evaluate,
    fit,
    promote,
    register,
    report,
    sample,
    search,
    select,
)
from pipelines.stages.corpus import CorpusStage


def sweep_stages(corpus: CorpusStage) -> list[Stage]:
    """The stages of a sweep over a corpus."""
    others = (search, select, fit, evaluate, register, promote, sample, report)
    return [corpus.stage, *(module.STAGE for module in others)]
