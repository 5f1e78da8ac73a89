"""The history of a training run: a row of metrics every few steps, more of them at evaluations.

Used by the loop, the search and the stages to find the best row and whether training has ended.
"""

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch, which those who need a name need not load
    from pipelines.training.config import TrainConfig

Row = dict[str, float]
"""One row of a run's history: `step` and metrics, by the names below."""

STEP, TIME = "step", "time"
"""Of every row: the optimizer steps done, and when that was, in seconds since 1970."""
TOKENS, SECONDS = "tokens", "seconds"
"""Of every row: the tokens trained on, and the seconds that took, evaluations left out."""
TRAIN_BITS, VAL_BITS = "train_bits_per_byte", "val_bits_per_byte"
"""Bits per byte of the training batches since the row before, in every row; and of the validation
split, in the rows that an evaluation, and a checkpoint, belongs to."""
LEARNING_RATE, GRAD_NORM = "learning_rate", "grad_norm"
"""Of the last step."""
TOKENS_PER_SECOND, MFU, PEAK_MEMORY = "tokens_per_second", "mfu", "peak_memory_bytes"
"""Speed and utilisation since the row before, and the most memory that was in use."""


def best_row(history: Iterable[Row], metric: str) -> Row:
    """The evaluated row (it has a checkpoint) with the smallest metric, the earliest of equals."""
    return min((row for row in history if VAL_BITS in row), key=itemgetter(metric))


def finished(history: Sequence[Row], config: "TrainConfig") -> bool:
    """Whether training has ended with this history: all steps are done, or `patience` is exceeded.

    It depends on the history only, so that a resumed run, every worker and every reader agree.
    """
    evaluated = [row for row in history if VAL_BITS in row]
    if not evaluated:
        return False
    since_best = len(evaluated) - 1 - evaluated.index(best_row(evaluated, config.best_metric))
    out_of_patience = config.patience is not None and since_best >= config.patience
    return out_of_patience or evaluated[-1][STEP] >= config.steps
