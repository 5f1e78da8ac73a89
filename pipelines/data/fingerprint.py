"""Text as bytes: where it comes from, how it is split and kept, how batches are drawn from it.

A corpus lies in storage under its fingerprint, in three files that are memory-mapped; from shared
storage each node takes a copy. The test split lies apart: nothing that training or the search
receives is a handle to it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

HELD_OUT = 0.05
"""Share of a text without held-out files in each of the validation and test splits."""
PARTS = {"train": "path", "validation": "validation_path", "test": "test_path"}
"""The key of `data` that each split is read from if the held-out files are given."""


@dataclass(frozen=True)
class Corpus:
    """What a corpus is, before anything of it is written."""

    fingerprint: str
    """32 hex digits that stand for all its bytes and where they are cut."""
    sizes: dict[str, int]
    """Bytes of each split, in the order of the text."""

    @classmethod
    def of(cls, sha256: str, lengths: Sequence[int]) -> "Corpus":
        """From the digest of all bytes and their number: in one text, or in each of three."""
        if len(lengths) == 1:  # is named by its bytes alone
            held_out = int(lengths[0] * HELD_OUT)
            lengths = [lengths[0] - 2 * held_out, held_out, held_out]
        else:
            sha256 = hashlib.sha256(f"{sha256} {lengths}".encode()).hexdigest()
        return cls(sha256[:32], dict(zip(PARTS, lengths, strict=True)))
