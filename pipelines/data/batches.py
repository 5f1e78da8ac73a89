"""Text as bytes: where it comes from, how it is split and kept, how batches are drawn from it.

A corpus lies in storage under its fingerprint, in three files that are memory-mapped; from shared
storage each node takes a copy. The test split lies apart: nothing that training or the search
receives is a handle to it.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines.storage.files import File, local_copy

Bytes = NDArray[np.uint8]


def open_bytes(file: File) -> Bytes:
    """A split as a read-only memory map, of this node's copy where it lies elsewhere."""
    return np.memmap(local_copy(file), dtype=np.uint8, mode="r")


class Batches:
    """Training windows in a shuffled order that is a function of the seed and the step alone.

    Every epoch cuts the text at a new phase into windows that do not overlap and visits each once.
    The order does not depend on the number of workers, and resuming needs nothing but the step.
    """

    def __init__(self, data: Bytes, seq_len: int, sequences: int, seed: int) -> None:
        """`sequences` is the number of windows of one optimizer step, over all workers."""
        self._data, self._seq_len, self._sequences, self._seed = data, seq_len, sequences, seed
        self._per_epoch = (len(data) - 1) // seq_len - 1 or 1
        self._starts = lru_cache(maxsize=2)(self._starts_of)

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> Bytes:
        """Inputs and targets of step `step` (from 0) for one worker: [about sequences / world,
        t + 1]."""
        first, end = (r * self._sequences // world for r in (rank, rank + 1))
        index = step * self._sequences + np.arange(first, end)
        epochs = index // self._per_epoch
        starts = np.empty(len(index), dtype=np.int64)
        for epoch in range(epochs[0], epochs[-1] + 1):
            here = epochs == epoch
            starts[here] = self._starts(epoch)[index[here] % self._per_epoch]
        return windows(self._data, starts, self._seq_len)

    def _starts_of(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([self._seed, epoch])
        phase = rng.integers(min(self._seq_len, len(self._data) - self._seq_len))
        return phase + self._seq_len * rng.permutation(self._per_epoch)


def windows(data: Bytes, starts: NDArray[np.int64], seq_len: int) -> Bytes:
    """Windows of seq_len + 1 bytes at the given starts: [n, t + 1]."""
    return data[starts[:, None] + np.arange(seq_len + 1)]
