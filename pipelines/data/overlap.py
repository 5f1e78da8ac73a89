"""How much of a test text stands in the training text: what a model may know by heart.

Used by the stage evaluate, whose result says it, and by the gate for a champion of another text.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.data.batches import Bytes

STRING_BYTES = 64
"""Length of the strings that are looked up: a line of code or text, seldom equal by chance."""
PIECE_STRINGS = 1 << 25
"""Of the test text, looked up at a time; the training text is read once for each piece. With all
that a look-up needs they take 0.9 GB, however long the texts are."""
CHUNK_BYTES = 1 << 22
"""Of a text, hashed at a time."""
FILTER_SLOTS = 4
"""Of the filter in front of the look-up, at least, for each string of a piece."""
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_VALUES = np.random.default_rng(0).integers(0, 1 << 64, 256, dtype=np.uint64)
"""What stands for each byte in a hash."""

Hashes = NDArray[np.uint64]


def overlap_share(train: Path, test: Path) -> float:
    """Share of the bytes of a test text in strings of 64 bytes that the training text has too.

    0 for a test text that is shorter than that. Compares hashes of 64 bits.
    """
    size = test.stat().st_size
    if min(size, train.stat().st_size) < STRING_BYTES:
        return 0.0
    known, text = (np.memmap(path, np.uint8, mode="r") for path in (train, test))
    covered, last = 0, -STRING_BYTES
    for first in range(0, size - STRING_BYTES + 1, PIECE_STRINGS):
        piece = text[first : first + PIECE_STRINGS + STRING_BYTES - 1]
        for starts in _found(piece, known):
            ascending = np.concatenate([[last], first + starts])
            covered += int(np.diff(ascending).clip(max=STRING_BYTES).sum())
            last = int(ascending[-1])
    return covered / size


def overlap_text(share: float) -> str:
    """What the share says, for people."""
    strings = f"strings of {STRING_BYTES} bytes that the training text has too"
    return f"{100 * share:.1f} % of the test bytes lie in {strings}"


def _found(piece: Bytes, train: Bytes) -> Iterator[NDArray[np.int64]]:
    """The starts of a piece's strings that the training text has too, ascending, in chunks."""
    wanted = np.empty(len(piece) - STRING_BYTES + 1, np.uint64)
    for start, hashes in _hashes(piece):
        wanted[start : start + len(hashes)] = hashes
    wanted.sort()
    seen = np.zeros(len(wanted), bool)  # of equal strings the first one
    shift = np.uint64(64 - (FILTER_SLOTS * len(wanted)).bit_length())
    quick = np.zeros(1 << 64 - int(shift), bool)  # most strings of the training text end here
    quick[wanted >> shift] = True
    for _, hashes in _hashes(train):
        passed = np.sort(hashes[quick[hashes >> shift]])  # a search in order takes a sixth
        places = np.searchsorted(wanted, passed).clip(max=len(wanted) - 1)
        seen[places[wanted[places] == passed]] = True
    for start, hashes in _hashes(piece):
        order = np.argsort(hashes)
        marks = np.empty(len(hashes), bool)
        marks[order] = seen[np.searchsorted(wanted, hashes[order])]
        yield start + np.flatnonzero(marks)


def _hashes(text: Bytes) -> Iterator[tuple[int, Hashes]]:
    """Of every string of STRING_BYTES bytes, in order: a polynomial in _BASE modulo 2^64.

    In chunks, each with the place of its first string.
    """
    strings = len(text) - STRING_BYTES + 1
    longest = min(strings, CHUNK_BYTES)
    powers, inverse = _powers(_BASE, longest + STRING_BYTES - 1), _powers(_INVERSE, longest)
    for start in range(0, strings, CHUNK_BYTES):
        count = min(CHUNK_BYTES, strings - start)
        terms = _VALUES[text[start : start + count + STRING_BYTES - 1]]
        terms *= powers[: len(terms)]
        sums = np.cumsum(terms)
        found = sums[STRING_BYTES - 1 :]
        found[1:] -= sums[: count - 1].copy()
        found *= inverse[:count]
        yield start, found


def _powers(base: int, count: int) -> Hashes:
    """Of a base modulo 2^64, from 1 on."""
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)
