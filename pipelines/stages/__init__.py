"""The DAG of an experiment, one file per stage."""

from pipelines.runtime.dag import Stage
from pipelines.stages import (
    corpus,
    evaluate,
    fit,
    promote,
    register,
    report,
    sample,
    search,
    select,
)

STAGES: list[Stage] = [
    module.STAGE
    for module in (corpus, search, select, fit, evaluate, register, promote, sample, report)
]
