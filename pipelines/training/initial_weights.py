"""Where a training begins, if not with random weights: at a model trained before."""

from safetensors.torch import load_file
from torch import Tensor

from pipelines.console.errors import PipelineError
from pipelines.storage.files import file_at, temporary_copy
from pipelines.storage.location import Storage

WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"


def read_initial_weights(folder: str) -> dict[str, Tensor]:
    """The weights of a pinned start. Raises PipelineError if they are gone."""
    file = file_at(Storage.of(folder).folder / WEIGHTS)
    if file is None:
        raise PipelineError(f"train.start_from: {folder}: is gone; run the same command again")
    with temporary_copy(file) as path:
        return load_file(path)
