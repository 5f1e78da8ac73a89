"""Checkpoints: written atomically, verified when read, never pickled.

A checkpoint is a folder named after its step with `tensors.safetensors` (weights, their average
if one is kept, and optimizer state), `state.json` (step, metric history, best step so far) and the
digests of both, as sha256sum writes them. The batches are a function of the seed and the step, so
the step is also the data cursor. In shared storage the name tells the writer too, so that no two
write under one name, and a folder is a checkpoint once it has digests.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.console.errors import DamagedError, StorageError
from pipelines.storage.digests import DIGESTS_FILE, verify_digests, write_digests
from pipelines.storage.remote import Folder, RemoteDirectory
from pipelines.training.history import Row

KEEP_LATEST = 2
"""Newest checkpoints kept: one to resume from and the one before it, should that be damaged."""

FILES = ("state.json", "tensors.safetensors")


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint knows besides tensors."""

    step: int
    history: list[Row]
    best_step: int
    seconds: float
    """Training time so far, over every start of the run."""
    config: str
    """Names the configuration trained: a folder is never resumed with another one."""


def save(
    folder: Folder,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    snapshot: Snapshot,
    average: nn.Module | None = None,
) -> None:
    """Write `folder/<step>`, then drop what is neither among the newest nor the best.

    The caller holds the folder's lock, or has claimed it. Raises StorageError if the storage does
    not take it, PipelineError if another process has claimed the folder since; what was there
    before is then still there.
    """
    tensors = _tensors(model, optimizer, average)
    if isinstance(folder, Path):
        _save_here(folder, tensors, snapshot)
        _prune(folder, snapshot)
    else:
        _save_shared(folder, tensors, snapshot)
        _prune_shared(folder, snapshot)


def _save_here(folder: Path, tensors: dict[str, Tensor], snapshot: Snapshot) -> None:
    target = path_of(folder, snapshot.step)
    temporary = folder / f".{target.name}"
    try:
        for unfinished in folder.glob(".[0-9]*"):
            shutil.rmtree(unfinished)
        temporary.mkdir(parents=True)
        _write(temporary, tensors, snapshot)
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(f"{target}: the checkpoint cannot be written: {error}") from error


def _save_shared(folder: RemoteDirectory, tensors: dict[str, Tensor], snapshot: Snapshot) -> None:
    target = folder / f"{snapshot.step:08d}-{folder.owner}"
    with tempfile.TemporaryDirectory() as scratch:
        try:
            _write(Path(scratch), tensors, snapshot)
        except (OSError, SafetensorError) as error:
            raise StorageError(f"{scratch}: cannot be written: {error}") from error
        target.put(Path(scratch), *FILES)
        folder.require_owner()
        target.put(Path(scratch), DIGESTS_FILE)


def _tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None
) -> dict[str, Tensor]:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    return tensors


def _write(folder: Path, tensors: dict[str, Tensor], snapshot: Snapshot) -> None:
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "tensors.safetensors")
    (folder / "state.json").write_text(json.dumps(vars(snapshot)))
    write_digests(folder, FILES)


def resume(
    folder: Folder,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: str,
    say: Callable[[str], None],
    *,
    average: nn.Module | None = None,
    step: int | None = None,
) -> Snapshot | None:
    """Load the newest sound checkpoint, or that of a step, into model, optimizer and average.

    Tells `say` which ones it passed over, and why. Returns None if none is left. Raises
    StorageError if shared storage cannot be read: what is there may be sound.
    """
    for path in reversed(checkpoints(folder)) if step is None else _of_step(folder, step):
        try:
            snapshot, tensors = _read(path)
        except DamagedError as error:
            say(f"{error}; using the one before it")
            continue
        if snapshot.config != config:
            say(f"{path}: of another configuration; not used")
            continue
        model.load_state_dict(_under(tensors, "model."))
        if average is not None:
            average.load_state_dict(_under(tensors, "average."))
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in _under(tensors, "optimizer.").items():
            index, _, key = name.partition(".")
            states.setdefault(int(index), {})[key] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": states, "param_groups": groups})
        return snapshot
    return None


def read_weights(path: Folder) -> dict[str, Tensor]:
    """The weights that were evaluated: their average if one is kept, else the model's.

    Raises DamagedError if the checkpoint is, StorageError if shared storage cannot be read.
    """
    tensors = _read(path)[1]
    return _under(tensors, "average.") or _under(tensors, "model.")


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"{step:08d}"


def step_of(path: Folder) -> int:
    """The step of a checkpoint."""
    return int(path.name[:8])


def checkpoints(folder: Folder) -> Sequence[Folder]:
    """Checkpoints, oldest first; a folder has its name, or its digests, once it is complete."""
    if isinstance(folder, Path):
        return sorted(folder.glob("[0-9]*"))
    return [folder / name for name in _complete(folder.files())]


def _complete(files: Iterable[str]) -> list[str]:
    """The names of the checkpoints that some files in shared storage make, oldest first."""
    paths = [file.split("/") for file in files]
    return sorted(path[0] for path in paths if path[0][0].isdigit() and path[1:] == [DIGESTS_FILE])


def _of_step(folder: Folder, step: int) -> Sequence[Folder]:
    """Where the checkpoint of a step is looked for; two writers may each have left one."""
    if isinstance(folder, Path):
        return [path_of(folder, step)]
    return [path for path in checkpoints(folder) if step_of(path) == step]


def _read(path: Folder) -> tuple[Snapshot, dict[str, Tensor]]:
    if isinstance(path, Path):
        return _read_here(path, path)
    with tempfile.TemporaryDirectory() as scratch:
        with suppress(FileNotFoundError):  # it is missed below
            path.get(Path(scratch), DIGESTS_FILE, *FILES)
        return _read_here(Path(scratch), path)


def _read_here(path: Path, name: Folder) -> tuple[Snapshot, dict[str, Tensor]]:
    """Read a checkpoint or its copy; errors name where it came from."""
    try:
        verify_digests(path, FILES)
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
        return Snapshot(**state), load_file(path / "tensors.safetensors")
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise DamagedError(f"{name}: damaged checkpoint: {error}") from error


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prune(folder: Path, snapshot: Snapshot) -> None:
    """Keep the newest and the best. What lies ahead was passed over on resume, and is no use."""
    steps = [int(path.name) for path in checkpoints(folder)]
    latest = [step for step in steps if step <= snapshot.step][-KEEP_LATEST:]
    for step in steps:
        if step not in (*latest, snapshot.best_step):
            shutil.rmtree(path_of(folder, step))


def _prune_shared(folder: RemoteDirectory, snapshot: Snapshot) -> None:
    """The same, and remove what others, or an earlier start, have left unfinished.

    What is removed was there while the folder was ours: never the work of a later owner.
    """
    files = folder.files()
    folder.require_owner()
    complete = sorted(_complete(files), key=lambda name: name.endswith(folder.owner))
    by_step = {int(name[:8]): name for name in complete}  # ours rather than another's
    latest = sorted(step for step in by_step if step <= snapshot.step)[-KEEP_LATEST:]
    kept = {by_step[step] for step in (*latest, snapshot.best_step) if step in by_step}
    for name in {file.partition("/")[0] for file in files} - kept:
        if name[0].isdigit():
            (folder / name).remove()
