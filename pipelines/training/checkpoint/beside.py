"""Writing checkpoints in a thread, while training goes on."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from torch import Tensor

from pipelines.storage.remote import Folder
from pipelines.training.checkpoint.content import Snapshot
from pipelines.training.checkpoint.saving import write


class CheckpointWriter:
    """Writes the checkpoints of one training, each before the next.

    Used by the trainer. On a GPU it writes `beside` training, which needs the host's processor for
    little else; on a CPU the two would share it. What can be read in the folder is the same: whole
    checkpoints only, of which the newest is missing until it is written.
    """

    def __init__(self, folder: Folder, key: str | None, *, beside: bool) -> None:
        """For the run's folder, whose lock the caller holds until `close`; key: see `write`."""
        self.beside = beside
        self._folder, self._key = folder, key
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None

    def write(self, tensors: Mapping[str, Tensor], snapshot: Snapshot) -> None:
        """Write a checkpoint, or begin to. Raises as `saving.write`, for this one or the last.

        Beside training, the tensors must be copies that it does not change.
        """
        self.wait()
        if not self.beside:
            write(self._folder, dict(tensors), snapshot, key=self._key)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        fixed = replace(snapshot, history=[dict(row) for row in snapshot.history])
        self._pending = self._pool.submit(write, self._folder, dict(tensors), fixed, key=self._key)

    def check(self) -> None:
        """Raise the error of a checkpoint that could not be written, without a wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Return when the last checkpoint is in its place; raises if it could not be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """`wait`, and end the thread."""
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
