"""Checkpoints: written atomically, verified when read, never pickled.

A checkpoint is a folder named after its step with `tensors.safetensors` (weights and optimizer
state) and `state.json` (step, metric history, best step so far, digest of the tensors). The batches
are a function of the seed and the step, so the step is also the data cursor.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.runtime.errors import PipelineError

KEEP_LATEST = 2
"""Newest checkpoints kept: one to resume from and the one before it, should that be damaged."""

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
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, snapshot: Snapshot
) -> None:
    """Write `folder/<step>`, then drop what is neither among the newest nor the best."""
    target = path_of(folder, snapshot.step)
    temporary = folder / f".{target.name}.{os.getpid()}"
    for unfinished in folder.glob(".[0-9]*"):
        shutil.rmtree(unfinished)
    temporary.mkdir(parents=True)
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary / "tensors.safetensors")
    state = {**vars(snapshot), "sha256": _digest(temporary / "tensors.safetensors")}
    (temporary / "state.json").write_text(json.dumps(state))
    for path in (*temporary.iterdir(), temporary):
        _sync(path)
    shutil.rmtree(target, ignore_errors=True)
    temporary.replace(target)
    _sync(folder)
    _prune(folder, snapshot.best_step)


def resume(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, config: str
) -> Snapshot | None:
    """Load the newest sound checkpoint into model and optimizer; None if there is none."""
    for path in reversed(checkpoints(folder)):
        try:
            snapshot, tensors = _read(path)
        except PipelineError as error:
            print(f"{error}; using the one before it", flush=True)
            continue
        if snapshot.config != config:
            print(f"{path}: of another configuration; not used", flush=True)
            continue
        model.load_state_dict(_under(tensors, "model."))
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in _under(tensors, "optimizer.").items():
            index, _, key = name.partition(".")
            states.setdefault(int(index), {})[key] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": states, "param_groups": groups})
        return snapshot
    return None


def read_weights(path: Path) -> dict[str, Tensor]:
    """The model's weights in a checkpoint. Raises PipelineError if it is damaged."""
    return _under(_read(path)[1], "model.")


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"{step:08d}"


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if (path / "state.json").exists())


def _read(path: Path) -> tuple[Snapshot, dict[str, Tensor]]:
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
        sha256 = state.pop("sha256")
        if _digest(path / "tensors.safetensors") != sha256:
            raise PipelineError(f"{path}: damaged checkpoint: the digest does not match")
        return Snapshot(**state), load_file(path / "tensors.safetensors")
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise PipelineError(f"{path}: damaged checkpoint: {error}") from error


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prune(folder: Path, best_step: int) -> None:
    for path in checkpoints(folder)[:-KEEP_LATEST]:
        if int(path.name) != best_step:
            shutil.rmtree(path)
