"""Checkpoints: written atomically, verified when read, never pickled.

A checkpoint is a folder named after its step with `tensors.safetensors` (weights, their average
if one is kept, and optimizer state), `state.json` (step, metric history, best step so far) and the
digests of both, as sha256sum writes them. The batches are a function of the seed and the step, so
the step is also the data cursor. In shared storage the name tells the writer too, so that no two
write under one name, and a folder is a checkpoint once it has digests.
"""

from collections.abc import Iterable, Sequence
from operator import itemgetter

from pipelines.training.config import TrainConfig

Row = dict[str, float]
"""One row of a run's history: `step` and metrics."""


def best_row(history: Iterable[Row], metric: str) -> Row:
    """The evaluated row (it has a checkpoint) with the smallest metric; the earliest of equals."""
    return min((row for row in history if "val_bits_per_byte" in row), key=itemgetter(metric))


def finished(history: Sequence[Row], config: TrainConfig) -> bool:
    """Whether training has ended with this history: its steps are done, or its patience is over.

    A function of the history alone, so that a resumed run, every worker and every reader agree.
    """
    evaluated = [row for row in history if "val_bits_per_byte" in row]
    if not evaluated:
        return False
    since_best = len(evaluated) - 1 - evaluated.index(best_row(evaluated, config.best_metric))
    tired = config.patience is not None and since_best >= config.patience
    return tired or evaluated[-1]["step"] >= config.steps
