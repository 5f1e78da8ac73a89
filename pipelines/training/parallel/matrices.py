"""Exchange of matrices whose rows are spread over the workers: Muon needs whole ones.

Each worker makes the updates of some matrices. It gets their rows from all others, and sends each
its rows of the result: an all-to-all in either direction, of the numbers that a worker holds.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Part(NamedTuple):
    """A matrix of its own: some rows of one that is stacked of several, see `optimizer.PARTS`."""

    matrix: int
    """Index of the stacked one."""
    first: int
    last: int
    """Its rows there: from `first`, and without `last`."""
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.last - self.first, self.columns


class RowExchange:
    """Which worker updates which part of matrices that are sharded by rows, and their exchange.

    Used by Muon where the workers share the weights.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        rows: Sequence[Sequence[int]],
        rank: int,
        world: int,
    ) -> None:
        """Of matrices of these shapes, each stacked of parts with so many rows."""
        self.rank, self.workers = rank, range(world)
        self.heights = [height for height, _ in shapes]
        parts = [
            Part(index, sum(counts[:number]), sum(counts[: number + 1]), shapes[index][1])
            for index, counts in enumerate(rows)
            for number in range(len(counts))
        ]
        parts.sort(key=lambda part: part.shape, reverse=True)  # those of one shape take turns
        self.owned = [parts[owner::world] for owner in self.workers]

    def to_owners(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """The parts that this worker updates, whole, from the rows that each worker holds."""
        sent = [[rows[part.matrix][self._place(part)] for part in theirs] for theirs in self.owned]
        mine = self.owned[self.rank]
        shapes = [[(self._count(part, one), part.columns) for part in mine] for one in self.workers]
        received = _all_to_all(sent, shapes, rows[0])
        return [torch.cat(pieces) for pieces in zip(*received, strict=True)]

    def to_holders(
        self, wholes: Sequence[Tensor], like: Tensor
    ) -> Iterator[tuple[Part, slice, Tensor]]:
        """The other way round: of every part the rows that this worker holds.

        Yields the part, the place of these rows among those of its matrix here, and their values,
        of the type and on the device of `like`.
        """
        mine = self.owned[self.rank]
        counts = [[self._count(part, one) for one in self.workers] for part in mine]
        cut = [whole.to(like.dtype).split(own) for whole, own in zip(wholes, counts, strict=True)]
        sent = [[pieces[one] for pieces in cut] for one in self.workers]
        shapes = [
            [(self._count(part, self.rank), part.columns) for part in theirs]
            for theirs in self.owned
        ]
        received = _all_to_all(sent, shapes, like)
        for theirs, pieces in zip(self.owned, received, strict=True):
            for part, piece in zip(theirs, pieces, strict=True):
                yield part, self._place(part), piece

    def _count(self, part: Part, worker: int) -> int:
        """How many rows of a part a worker holds."""
        first, last = held_rows(self.heights[part.matrix], worker, len(self.workers))
        return max(0, min(last, part.last) - max(first, part.first))

    def _place(self, part: Part) -> slice:
        """Where a part's rows are among those of its matrix on this worker."""
        first, _ = held_rows(self.heights[part.matrix], self.rank, len(self.workers))
        start = max(0, part.first - first)
        return slice(start, start + self._count(part, self.rank))


def held_rows(height: int, worker: int, world: int) -> tuple[int, int]:
    """Of a matrix of that height the rows that a worker holds: the first, and the one behind.

    As PyTorch's fully_shard cuts it: ceil(height / world) for each, the last ones fewer or none.
    """
    each = -(-height // world)
    return min(height, worker * each), min(height, (worker + 1) * each)


def _all_to_all(
    sent: Sequence[Sequence[Tensor]], shapes: Sequence[Sequence[tuple[int, int]]], like: Tensor
) -> list[list[Tensor]]:
    """Send each worker some matrices; returns those received from each, which have these shapes."""
    flat = [torch.cat([like.new_empty(0), *(one.flatten() for one in to)]) for to in sent]
    sizes = [[r * c for r, c in theirs] for theirs in shapes]
    received = like.new_empty(sum(map(sum, sizes)))
    dist.all_to_all_single(
        *(received, torch.cat(flat), [sum(theirs) for theirs in sizes]), [len(to) for to in flat]
    )
    cut = received.split([sum(theirs) for theirs in sizes])
    return [
        [piece.view(shape) for piece, shape in zip(whole.split(own), theirs, strict=True)]
        for whole, own, theirs in zip(cut, sizes, shapes, strict=True)
    ]
