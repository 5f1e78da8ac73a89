"""The weights that a training starts from instead of random ones: those of a trained model.

Used by the trainer; `pipelines.registry.initial_weights` puts the copy into storage.
"""

from typing import TYPE_CHECKING

from pipelines.console.errors import PipelineError
from pipelines.storage.files import file_at, temporary_copy
from pipelines.storage.location import Storage

if TYPE_CHECKING:  # imported by the function that needs it
    from torch import Tensor

WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"
"""Files in such a folder, as in a packaged model."""


def read_initial_weights(folder: str) -> "dict[str, Tensor]":
    """The weights in a folder in storage. Raises PipelineError if they are no longer there."""
    from safetensors.torch import load_file

    file = file_at(Storage.of(folder, key="train.start_from").folder / WEIGHTS)
    if file is None:
        raise PipelineError(f"train.start_from: {folder}: is gone; run the same command again")
    with temporary_copy(file) as path:
        return load_file(path)
