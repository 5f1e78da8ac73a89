"""The history of a training run: a row of metrics every few steps, more of them at evaluations.

Used by the loop, the search and the stages to find the best row and whether training has ended.
"""

from collections.abc import Iterable, Sequence
from operator import itemgetter

from pipelines.training.config import TrainConfig

Row = dict[str, float]
"""One row of a run's history: `step` and metrics."""


def best_row(history: Iterable[Row], metric: str) -> Row:
    """The evaluated row (it has a checkpoint) with the smallest metric, the earliest of equals."""
    return min((row for row in history if "val_bits_per_byte" in row), key=itemgetter(metric))


def finished(history: Sequence[Row], config: TrainConfig) -> bool:
    """Whether training has ended with this history: all steps are done, or `patience` is exceeded.

    It depends on the history only, so that a resumed run, every worker and every reader agree.
    """
    evaluated = [row for row in history if "val_bits_per_byte" in row]
    if not evaluated:
        return False
    since_best = len(evaluated) - 1 - evaluated.index(best_row(evaluated, config.best_metric))
    out_of_patience = config.patience is not None and since_best >= config.patience
    return out_of_patience or evaluated[-1]["step"] >= config.steps
