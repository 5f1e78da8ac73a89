"""How much of a test text stands in the training text: what a model may know by heart.

Used by the stage evaluate, whose result says it.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

STRING_BYTES = 64
"""Length of the strings that are looked up: a line of code or text, seldom equal by chance."""
CHUNK_BYTES = 1 << 22
"""Of the training text, read at a time."""
FILTER_SLOTS = 8
"""Of the filter in front of the look-up, for each string of the test text."""
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
    hashes = np.concatenate(list(_hashes(test)))
    wanted = np.unique(hashes)
    seen = np.zeros(len(wanted), bool)
    shift = np.uint64(64 - (FILTER_SLOTS * len(wanted)).bit_length())
    quick = np.zeros(1 << 64 - int(shift), bool)  # most strings of the training text end here
    quick[wanted >> shift] = True
    for chunk in _hashes(train):
        found = chunk[quick[chunk >> shift]]
        places = np.searchsorted(wanted, found).clip(max=len(wanted) - 1)
        seen[places[wanted[places] == found]] = True
    return _covered(seen[np.searchsorted(wanted, hashes)]) / size


def overlap_text(share: float) -> str:
    """What the share says, for people."""
    strings = f"strings of {STRING_BYTES} bytes that the training text has too"
    return f"{100 * share:.1f} % of the test bytes lie in {strings}"


def _hashes(path: Path) -> Iterator[Hashes]:
    """Of every string of STRING_BYTES bytes, in order: a polynomial in _BASE modulo 2^64."""
    text = np.memmap(path, np.uint8, mode="r")
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
        yield found


def _powers(base: int, count: int) -> Hashes:
    """Of a base modulo 2^64, from 1 on."""
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


def _covered(starts: NDArray[np.bool_]) -> int:
    """Bytes in at least one of the strings that start at the marked places."""
    change = np.zeros(len(starts) + STRING_BYTES, np.int64)
    change[: len(starts)] += starts
    change[STRING_BYTES:] -= starts
    return int((np.cumsum(change) > 0).sum())
