"""Writing a checkpoint, and removing those that are neither among the newest nor the best."""

import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pipelines.console.errors import StorageError
from pipelines.console.text import reason_of
from pipelines.storage.files import move_into_place
from pipelines.storage.remote import Folder, RemoteDirectory
from pipelines.storage.scratch import scratch_folder
from pipelines.training.checkpoint.content import Snapshot, collect_tensors, write_files
from pipelines.training.checkpoint.layout import (
    complete_names,
    list_checkpoints,
    path_of,
    step_in,
)

KEEP_LATEST = 2
"""Newest checkpoints kept: one to resume from, and the one before it in case that is damaged."""


def save(
    folder: Folder,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    snapshot: Snapshot,
    average: nn.Module | None = None,
    *,
    key: str | None = None,
) -> None:
    """Write a run's checkpoint of `snapshot.step` into its folder, and remove those not needed.

    Of weights that this process holds whole. Arguments and errors are those of `write`.
    """
    write(folder, collect_tensors(model, optimizer, average), snapshot, key=key)


def write(
    folder: Folder, tensors: dict[str, Tensor], snapshot: Snapshot, *, key: str | None = None
) -> None:
    """Write the tensors that `collect_tensors` returned; remove checkpoints that are not needed.

    The checkpoint is signed with the key, if there is one. The caller holds the folder's
    `writer_lock`. Raises StorageError if the storage refuses, PipelineError if another process has
    claimed a remote folder since; earlier checkpoints are then still there.
    """
    if isinstance(folder, Path):
        _save_local(folder, tensors, snapshot, key)
        _prune_local(folder, snapshot)
    else:
        _save_remote(folder, tensors, snapshot, key)
        _prune_remote(folder, snapshot)


def _save_local(
    folder: Path, tensors: dict[str, Tensor], snapshot: Snapshot, key: str | None
) -> None:
    """Write under a temporary name, sync to disk, rename."""
    target = path_of(folder, snapshot.step)
    temporary = folder / f".{target.name}"
    try:
        for unfinished in folder.glob(".[0-9]*"):
            _remove(unfinished)
        temporary.mkdir(parents=True)
        write_files(temporary, tensors, snapshot, key)
        _remove(target)
        move_into_place(temporary, target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(
            f"{target}: the checkpoint cannot be written: {reason_of(error)}"
        ) from error


def _remove(path: Path) -> None:
    """Remove what has the name of a checkpoint: one of before, or a link or a file of others.

    What cannot be removed of a folder is left, without error.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _save_remote(
    folder: RemoteDirectory, tensors: dict[str, Tensor], snapshot: Snapshot, key: str | None
) -> None:
    """Upload the files, then the digests, which make it a checkpoint, if the claim still holds."""
    target = folder / f"{snapshot.step:08d}-{folder.owner}"
    with scratch_folder() as scratch:
        try:
            *files, digests = write_files(scratch, tensors, snapshot, key)
        except (OSError, SafetensorError) as error:
            raise StorageError(f"{scratch}: cannot be written: {reason_of(error)}") from error
        target.put(scratch, *files)
        folder.require_owner()
        target.put(scratch, digests)


def _prune_local(folder: Path, snapshot: Snapshot) -> None:
    """Keep the newest and the best. Later steps were passed over on resume and are not needed.

    One that cannot be removed, as while a process reads it on a file server, is tried again by the
    next call.
    """
    steps = [int(path.name) for path in list_checkpoints(folder)]
    latest = [step for step in steps if step <= snapshot.step][-KEEP_LATEST:]
    for step in steps:
        if step not in (*latest, snapshot.best_step):
            _remove(path_of(folder, step))


def _prune_remote(folder: RemoteDirectory, snapshot: Snapshot) -> None:
    """The same, and remove what other writers or earlier processes have left unfinished.

    All that is removed was listed before the claim was checked: never the work of a later owner.
    """
    files = folder.files()
    folder.require_owner()
    complete = sorted(complete_names(files), key=lambda name: name.endswith(folder.owner))
    by_step = {step_in(name): name for name in complete}  # of one step, the one of this writer
    latest = sorted(step for step in by_step if step <= snapshot.step)[-KEEP_LATEST:]
    kept = {by_step[step] for step in (*latest, snapshot.best_step) if step in by_step}
    for name in {file.partition("/")[0] for file in files} - kept:
        if name[0].isdigit():
            (folder / name).remove()
