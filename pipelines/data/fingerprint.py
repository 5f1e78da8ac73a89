"""The fingerprint of a corpus and the sizes of its splits.

Used by the reader of a corpus, by the splits in storage and by the corpus stage.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

HELD_OUT_SHARE = 0.05
"""Share of the validation split, and of the test split, of a text without held-out files."""
SPLIT_KEYS = {"train": "path", "validation": "validation_path", "test": "test_path"}
"""For each split the key of `data` that names its files, if there are held-out files."""


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus by name and content: the result of the stage corpus, whose splits are in storage."""

    name: str
    fingerprint: str
    bytes: dict[str, int]
    """Of each split."""


@dataclass(frozen=True)
class Corpus:
    """The identity of a corpus, before anything of it is written."""

    fingerprint: str
    """32 hex digits: a digest of all bytes and of where they are split."""
    sizes: dict[str, int]
    """Bytes of each split, in the order of the text."""
    files: int | None = field(default=None, compare=False)
    """How many files it was read from; None if that is not known."""

    @classmethod
    def of(cls, sha256: str, lengths: Sequence[int], files: int | None = None) -> "Corpus":
        """The corpus of one text, which is split 90/5/5, or of three, one for each split.

        Args:
            sha256: Of all bytes, as hex digits.
            lengths: Bytes of the text, or of each of the three.
            files: How many files it was read from, if that is known.

        """
        if len(lengths) == 1:  # its fingerprint is that of its bytes
            held_out = int(lengths[0] * HELD_OUT_SHARE)
            lengths = [lengths[0] - 2 * held_out, held_out, held_out]
        else:
            sha256 = hashlib.sha256(f"{sha256} {lengths}".encode()).hexdigest()
        return cls(sha256[:32], dict(zip(SPLIT_KEYS, lengths, strict=True)), files)
