"""Training batches: windows of a memory-mapped split in a shuffled order.

Used by the training loop; evaluation reads its own windows with `windows`.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines.storage.files import File, local_copy

Bytes = NDArray[np.uint8]


def open_bytes(file: File) -> Bytes:
    """A split as a read-only memory map; of shared storage, this node's copy of it."""
    return np.memmap(local_copy(file), dtype=np.uint8, mode="r")


class Batches:
    """Training windows in a shuffled order, which is a function of the seed and the step only.

    Each epoch splits the text, from a new offset, into windows that do not overlap and visits each
    once. The order does not depend on the number of workers, so that training resumes from a step.
    """

    def __init__(self, data: Bytes, seq_len: int, sequences: int, seed: int) -> None:
        """Draw `sequences` windows for each optimizer step, over all workers."""
        self._data, self._seq_len, self._sequences, self._seed = data, seq_len, sequences, seed
        self._per_epoch = (len(data) - 1) // seq_len - 1 or 1
        self._starts = lru_cache(maxsize=2)(self._starts_of)

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> Bytes:
        """Inputs and targets of an optimizer step for one worker: [about sequences / world, t + 1].

        Args:
            step: From 0.
            rank: Of the worker, from 0.
            world: Number of workers.

        """
        first, end = (r * self._sequences // world for r in (rank, rank + 1))
        index = step * self._sequences + np.arange(first, end)
        epochs = index // self._per_epoch
        starts = np.empty(len(index), dtype=np.int64)
        for epoch in range(epochs[0], epochs[-1] + 1):
            in_epoch = epochs == epoch
            starts[in_epoch] = self._starts(epoch)[index[in_epoch] % self._per_epoch]
        return windows(self._data, starts, self._seq_len)

    def _starts_of(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([self._seed, epoch])
        phase = rng.integers(min(self._seq_len, len(self._data) - self._seq_len))
        return phase + self._seq_len * rng.permutation(self._per_epoch)


def windows(data: Bytes, starts: NDArray[np.int64], seq_len: int) -> Bytes:
    """Windows of seq_len + 1 bytes at the given starts: [n, t + 1]."""
    return data[starts[:, None] + np.arange(seq_len + 1)]
