"""What a checkpoint contains: the tensors of a run and its snapshot, as files with digests."""

import hmac
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.console.errors import DamagedError
from pipelines.storage.digests import DIGESTS_FILE, verify_digests, write_digests
from pipelines.storage.remote import Folder
from pipelines.training.checkpoint.layout import step_of
from pipelines.training.history import Row

TENSORS_FILE, STATE_FILE = "tensors.safetensors", "state.json"
FILES = (STATE_FILE, TENSORS_FILE)
"""The files with digests, in the order in which they are uploaded."""
SIGNATURE_FILE = "SIGNATURE"
"""The HMAC-SHA256 of the file of digests, in hex digits; uploaded before that."""


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds besides tensors."""

    step: int
    history: list[Row]
    best_step: int
    seconds: float
    """Training time so far, over all starts of the run."""
    config: str
    """Digest of the configuration: a run is never resumed with another one."""


def collect_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None
) -> dict[str, Tensor]:
    """The tensors of a run by names that begin with `model.`, `average.` or `optimizer.INDEX.`."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    return tensors


def restore_tensors(
    tensors: dict[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None,
) -> None:
    """Load what `collect_tensors` returned into a model, its optimizer and their average."""
    model.load_state_dict(with_prefix(tensors, "model."))
    if average is not None:
        average.load_state_dict(with_prefix(tensors, "average."))
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in with_prefix(tensors, "optimizer.").items():
        index, _, key = name.partition(".")
        states.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})
    for state in optimizer.state.values():  # or they keep the file mapped for as long as they live
        state |= {name: value.clone() for name, value in state.items()}


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of the name."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def write_files(
    folder: Path, tensors: dict[str, Tensor], snapshot: Snapshot, key: str | None
) -> list[str]:
    """Write a checkpoint's files, their digests and, with a key, the signature of these.

    Into a folder of this machine. Returns their names in the order in which they are uploaded.
    """
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / TENSORS_FILE)
    (folder / STATE_FILE).write_text(json.dumps(vars(snapshot)))
    write_digests(folder, FILES)
    if key is None:
        return [*FILES, DIGESTS_FILE]
    signature = _signature((folder / DIGESTS_FILE).read_text(), key)
    (folder / SIGNATURE_FILE).write_text(signature)
    return [*FILES, SIGNATURE_FILE, DIGESTS_FILE]


def read_files(folder: Path, name: Folder, key: str | None) -> tuple[Snapshot, dict[str, Tensor]]:
    """The snapshot and tensors of a checkpoint on this machine, or of the local copy of one.

    `name` is the original's. Raises DamagedError, which names it, if a file is missing or altered,
    if it is of another step than its name, or if there is a key and its signature is not by that.
    """
    try:
        digests = verify_digests(folder, FILES)
        if key is not None:
            _verify_signature(folder, digests, key)
        state: dict[str, Any] = json.loads((folder / STATE_FILE).read_text())
        snapshot = Snapshot(**state)
        if snapshot.step != step_of(name):
            raise ValueError(f"{STATE_FILE}: it is of step {snapshot.step}")
        return snapshot, load_file(folder / TENSORS_FILE)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise DamagedError(f"{name}: damaged checkpoint: {error}") from error


def _verify_signature(folder: Path, digests: str, key: str) -> None:
    """Raise ValueError unless the signature beside these digests is theirs, by this key."""
    path = folder / SIGNATURE_FILE
    found = path.read_bytes() if path.exists() else b""
    if not hmac.compare_digest(found, _signature(digests, key).encode()):
        raise ValueError(f"{SIGNATURE_FILE}: missing, or not made with the key of its run")


def _signature(digests: str, key: str) -> str:
    return hmac.digest(key.encode(), digests.encode(), "sha256").hex()
