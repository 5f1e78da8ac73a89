"""The weights that a training starts from instead of random ones: those of a trained model.

Used by the trainer; `pipelines.registry.initial_weights` puts the copy into storage.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.console.errors import DamagedError, PipelineError
from pipelines.storage.digests import cached_sha256
from pipelines.storage.files import file_at, temporary_copy
from pipelines.storage.location import Storage

if TYPE_CHECKING:  # imported by the function that needs it
    from torch import Tensor

WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"
"""Files in such a folder, as in a packaged model."""
DIGEST = re.compile(r"[0-9a-f]{32}")
"""The name of a folder that a command has copied weights to."""


def start_name(weights: Path) -> str:
    """The name of a start's folder in storage: the first 32 hex digits of its weights' sha256."""
    return cached_sha256(weights)[:32]


def read_initial_weights(folder: str) -> "dict[str, Tensor]":
    """The weights in a folder in storage.

    Raises PipelineError if they are no longer there, DamagedError if they are not those that the
    folder's name is the digest of.
    """
    from safetensors.torch import load_file

    place = Storage.of(folder, key="train.start_from").folder
    file = file_at(place / WEIGHTS)
    if file is None:
        raise PipelineError(f"train.start_from: {folder}: is gone; run the same command again")
    with temporary_copy(file) as path:
        if DIGEST.fullmatch(place.name) and start_name(path) != place.name:
            message = f"{WEIGHTS} was altered; run the same command again"
            raise DamagedError(f"train.start_from: {folder}: {message}")
        return load_file(path)
