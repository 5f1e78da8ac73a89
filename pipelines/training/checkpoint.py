"""Checkpoints: written atomically, verified when read, never pickled.

A checkpoint is a folder named after its step with `tensors.safetensors` (weights, their average
if one is kept, and optimizer state), `state.json` (step, metric history, best step so far) and the
digests of both, as sha256sum writes them. The batches are a function of the seed and the step, so
the step is also the data cursor.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.runtime.errors import PipelineError, StorageError

KEEP_LATEST = 2
"""Newest checkpoints kept: one to resume from and the one before it, should that be damaged."""

FILES = ("state.json", "tensors.safetensors")
DIGESTS = "SHA256SUMS"

Row = dict[str, float]
"""One row of a run's history: `step` and metrics."""


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
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    snapshot: Snapshot,
    average: nn.Module | None = None,
) -> None:
    """Write `folder/<step>`, then drop what is neither among the newest nor the best.

    The caller holds the folder's lock. Raises StorageError if the disk does not take it; what was
    there before is then still there.
    """
    target = path_of(folder, snapshot.step)
    temporary = folder / f".{target.name}"
    try:
        for unfinished in folder.glob(".[0-9]*"):
            shutil.rmtree(unfinished)
        temporary.mkdir(parents=True)
        _write(temporary, _tensors(model, optimizer, average), snapshot)
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(f"{target}: the checkpoint cannot be written: {error}") from error
    _prune(folder, snapshot)


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
    (folder / DIGESTS).write_text(_digests(folder))
    for path in (*folder.iterdir(), folder):
        _sync(path)


def resume(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: str,
    say: Callable[[str], None],
    *,
    average: nn.Module | None = None,
    step: int | None = None,
) -> Snapshot | None:
    """Load the newest sound checkpoint, or that of a step, into model, optimizer and average.

    Tells `say` which ones it passed over, and why. Returns None if none is left.
    """
    paths = list(reversed(checkpoints(folder))) if step is None else [path_of(folder, step)]
    for path in paths:
        try:
            snapshot, tensors = _read(path)
        except PipelineError as error:
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


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights that were evaluated: their average if one is kept, else the model's.

    Raises PipelineError if the checkpoint is damaged.
    """
    tensors = _read(path)[1]
    return _under(tensors, "average.") or _under(tensors, "model.")


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"{step:08d}"


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints, oldest first; a folder has its name only once it is complete."""
    return sorted(folder.glob("[0-9]*"))


def _read(path: Path) -> tuple[Snapshot, dict[str, Tensor]]:
    try:
        if (path / DIGESTS).read_text() != _digests(path):
            raise PipelineError(f"{path}: damaged checkpoint: a digest does not match")
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
        return Snapshot(**state), load_file(path / "tensors.safetensors")
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise PipelineError(f"{path}: damaged checkpoint: {error}") from error


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _digests(folder: Path) -> str:
    lines = []
    for name in FILES:
        with (folder / name).open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)


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
