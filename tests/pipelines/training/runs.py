"""What the tests of the training loop compare: rows without times, and tensors of checkpoints."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pipelines.storage.digests import write_digests
from pipelines.storage.remote import Folder
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
KEY = "0123456789abcdef" * 2
"""With which a run's checkpoints are signed."""
STUCK = {"train.learning_rate": 1e-30, "train.patience": 1}
"""Nothing is learned: the second evaluation, of four, is the last."""


def history(evaluations: Iterable[list[Row]]) -> list[dict]:
    return [{key: row.get(key) for key in UNTIMED} for rows in evaluations for row in rows]


def tensors(folder) -> dict[str, torch.Tensor]:
    return checkpoint.read(checkpoint.list_checkpoints(folder)[-1])[1]


def forge(path: Folder) -> None:
    """Replace a checkpoint's weights, with digests that are right: as who writes storage can."""
    files = ["state.json", "tensors.safetensors"]
    with tempfile.TemporaryDirectory() as name:
        folder = path if isinstance(path, Path) else Path(name)
        if not isinstance(path, Path):
            path.get(folder, *files)
        tensors = load_file(folder / files[1])
        save_file({name: value + 1 for name, value in tensors.items()}, folder / files[1])
        write_digests(folder, files)
        if not isinstance(path, Path):
            path.put(folder, *files, "SHA256SUMS")


def unsign(path: Folder) -> None:
    """Remove a checkpoint's signature."""
    if isinstance(path, Path):
        (path / "SIGNATURE").unlink()
    else:
        (path / "SIGNATURE").delete_file()
