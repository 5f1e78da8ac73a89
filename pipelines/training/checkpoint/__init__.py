"""Checkpoints of a training run: written atomically, verified when read, without pickle.

Used by the training loop to save and resume, and by the stages that package a run's best weights.

A checkpoint is a folder named after its step with `tensors.safetensors` (weights, their average if
one is kept, and optimizer state), `state.json` (step, metric history, best step so far) and
SHA256SUMS with the digests of both. The batches are a function of the seed and the step, so that
the step is also the position in the data. In remote storage the folder's name also contains the
writer, so that no two processes write to one name, and it counts as a checkpoint once it has
digests.

With a key, which the tracking store has, a checkpoint also has SIGNATURE, the HMAC-SHA256 of its
SHA256SUMS, and one without the right signature is a damaged one: whoever can write the storage
alone cannot make a checkpoint. They can put an earlier one of the same run back under its own step;
that is accepted, for the run itself wrote it.
"""

from pipelines.training.checkpoint.beside import CheckpointWriter
from pipelines.training.checkpoint.content import Snapshot, collect_tensors
from pipelines.training.checkpoint.layout import list_checkpoints, path_of, step_of
from pipelines.training.checkpoint.loading import read, read_weights, resume
from pipelines.training.checkpoint.saving import save, write

__all__ = [
    "CheckpointWriter",
    "Snapshot",
    "collect_tensors",
    "list_checkpoints",
    "path_of",
    "read",
    "read_weights",
    "resume",
    "save",
    "step_of",
    "write",
]
