"""Reading checkpoints: to resume a run, or to take the weights that it evaluated."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from pipelines.console.errors import DamagedError
from pipelines.storage.digests import DIGESTS_FILE
from pipelines.storage.remote import Folder
from pipelines.storage.scratch import scratch_folder
from pipelines.training.checkpoint.content import (
    FILES,
    SIGNATURE_FILE,
    Snapshot,
    read_files,
    restore_tensors,
    with_prefix,
)
from pipelines.training.checkpoint.layout import checkpoints_of_step, list_checkpoints


def resume(
    folder: Folder,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: str,
    log: Callable[[str], None],
    *,
    average: nn.Module | None = None,
    step: int | None = None,
    key: str | None = None,
) -> Snapshot | None:
    """Load the newest intact checkpoint of a run, or that of a step, and return its snapshot.

    Args:
        folder: The run's folder.
        model: Loaded in place, as are `optimizer` and `average`.
        optimizer: As `build_optimizer` makes it for the model.
        config: Digest of the configuration; a checkpoint of another one is passed over.
        log: Called with a line for every checkpoint that is passed over, and why, and if that is
            all of them.
        average: The averaged model, if the configuration keeps one.
        step: The only step to look for.
        key: A checkpoint that is not signed with it is passed over as a damaged one is.

    Returns None if there is no such checkpoint. Raises StorageError if remote storage cannot be
    read: the checkpoints there may be intact.
    """
    paths = list_checkpoints(folder) if step is None else checkpoints_of_step(folder, step)
    for path in reversed(paths):
        try:
            snapshot, tensors = read(path, key=key)
        except DamagedError as error:
            log(f"{error}; not used")
            continue
        if snapshot.config != config:
            log(f"{path}: of another configuration; not used")
            continue
        restore_tensors(tensors, model, optimizer, average)
        return snapshot
    if paths and step is None:
        log(f"{folder}: no checkpoint can be used; training starts from step 0")
    return None


def read_weights(path: Folder, *, key: str | None = None) -> dict[str, Tensor]:
    """The weights that were evaluated: their average if one is kept, else the model's.

    Raises DamagedError if the checkpoint is, or is not signed with the key if there is one;
    StorageError if remote storage cannot be read.
    """
    tensors = read(path, key=key)[1]
    return with_prefix(tensors, "average.") or with_prefix(tensors, "model.")


def read(path: Folder, *, key: str | None = None) -> tuple[Snapshot, dict[str, Tensor]]:
    """A checkpoint's snapshot and tensors. Raises as `read_weights`."""
    if isinstance(path, Path):
        return read_files(path, path, key)
    with scratch_folder() as scratch:
        with suppress(FileNotFoundError):  # reported as damaged below
            path.get(scratch, DIGESTS_FILE, *FILES, *([] if key is None else [SIGNATURE_FILE]))
        return read_files(scratch, path, key)
