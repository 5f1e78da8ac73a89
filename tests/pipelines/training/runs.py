"""What the tests of the training loop compare: rows without times, and tensors of checkpoints."""

from collections.abc import Iterable

import torch

from pipelines.training import checkpoint
from pipelines.training.history import Row

UNTIMED = (
    "step",
    "tokens",
    "train_bits_per_byte",
    "learning_rate",
    "grad_norm",
    "val_bits_per_byte",
)
STUCK = {"train.learning_rate": 1e-30, "train.patience": 1}
"""Nothing is learned: the second evaluation, of four, is the last."""


def history(evaluations: Iterable[list[Row]]) -> list[dict]:
    return [{key: row.get(key) for key in UNTIMED} for rows in evaluations for row in rows]


def tensors(folder) -> dict[str, torch.Tensor]:
    return checkpoint.read(checkpoint.list_checkpoints(folder)[-1])[1]
