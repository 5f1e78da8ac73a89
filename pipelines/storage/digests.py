"""sha256 digests of files, and SHA256SUMS files as sha256sum writes and checks them.

Used by checkpoints, copies of corpora and model packages. A packaged model has a reader of its own,
because it runs without this project.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

DIGESTS_FILE = "SHA256SUMS"
"""Name of the file with the digests of the files beside it."""
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def sha256_of(path: Path) -> str:
    """The sha256 of a file of this machine, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def format_digests(files: Mapping[str, Path]) -> str:
    """The text of a SHA256SUMS file for these files by the names that it lists."""
    return "".join(f"{sha256_of(path)}  {name}\n" for name, path in files.items())


def parse_digests(text: str) -> dict[str, str]:
    """The digests in the text of a SHA256SUMS file, by file name. Raises ValueError if malformed.

    A text cut short has no newline at its end and is malformed.
    """
    rows = [_LINE.fullmatch(line) for line in text.split("\n")[:-1]]
    found = {row[2]: row[1] for row in rows if row}
    if len(found) != len(rows) or not text.endswith("\n"):
        raise ValueError(f"{DIGESTS_FILE}: expected a line `digest  name` for each file")
    return found


def write_digests(folder: Path, names: Iterable[str]) -> None:
    """Write the digests of some files of a folder into its SHA256SUMS."""
    text = format_digests({name: folder / name for name in names})
    (folder / DIGESTS_FILE).write_text(text)


def verify_digests(folder: Path, names: Iterable[str]) -> None:
    """Check files of a folder against its SHA256SUMS, which must list these and no others.

    Raises OSError if one is missing, ValueError if one does not match its digest.
    """
    expected, given = parse_digests((folder / DIGESTS_FILE).read_text()), {*names}
    if expected.keys() != given:
        raise ValueError(f"{DIGESTS_FILE}: expected {sorted(given)}, got {sorted(expected)}")
    for name in sorted(given):
        if sha256_of(folder / name) != expected[name]:
            raise ValueError(f"{name}: a digest does not match")
