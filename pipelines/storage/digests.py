"""sha256 digests of files, and SHA256SUMS files as sha256sum writes and checks them.

Used by checkpoints, copies of corpora, reports and model packages. A packaged model has a reader of
its own, because it runs without this project.
"""

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath

DIGESTS_FILE = "SHA256SUMS"
"""Name of the file with the digests of the files beside it."""
CACHES = "__pycache__"
"""Folders that Python writes beside sources; they are neither listed nor read."""
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def sha256_of(path: Path) -> str:
    """The sha256 of a file of this machine, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_sha256(path: Path) -> str:
    """The same, computed once in each process until the file changes.

    The time of modification of a damaged file may be that of before, as after a copy that keeps
    times; the time of change is not. So a later command in the process finds the damage that one in
    a new process would.
    """
    return _sha256_of_state(path, file_state(path))


def file_state(path: Path) -> tuple[int, ...]:
    """Inode, size and times of modification and of change of a file: other ones, other content."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@lru_cache(maxsize=1024)
def _sha256_of_state(path: Path, state: tuple[int, ...]) -> str:
    """The digest of a file in this state."""
    return sha256_of(path)


def format_digests(files: Mapping[str, Path]) -> str:
    """The text of a SHA256SUMS file for these files by the names that it lists."""
    return "".join(f"{sha256_of(path)}  {name}\n" for name, path in files.items())


def parse_digests(text: str) -> dict[str, str]:
    """The digests in the text of a SHA256SUMS file, by file name.

    Raises ValueError if it is malformed, or names a file outside its folder. A text cut short has
    no newline at its end and is malformed.
    """
    rows = [_LINE.fullmatch(line) for line in text.split("\n")[:-1]]
    found = {row[2]: row[1] for row in rows if row}
    if len(found) != len(rows) or not text.endswith("\n"):
        raise ValueError(f"{DIGESTS_FILE}: expected a line `digest  name` for each file")
    for name in found:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or str(path) != name:
            raise ValueError(f"{DIGESTS_FILE}: {name} is not the name of a file in its folder")
    return found


def write_digests(folder: Path, names: Iterable[str]) -> None:
    """Write the digests of some files of a folder into its SHA256SUMS."""
    text = format_digests({name: folder / name for name in names})
    (folder / DIGESTS_FILE).write_text(text, "utf-8")


def verify_digests(folder: Path, names: Iterable[str]) -> str:
    """Check files of a folder against its SHA256SUMS, which must list these and no others.

    Returns the text of SHA256SUMS. Raises OSError if one is missing, ValueError if one does not
    match its digest, or if anything in the folder is neither a file nor a folder: a pipe would be
    waited for.
    """
    plain_files(folder)
    text = (folder / DIGESTS_FILE).read_text(encoding="utf-8")
    expected, given = parse_digests(text), {*names}
    if expected.keys() != given:
        raise ValueError(f"{DIGESTS_FILE}: expected {sorted(given)}, got {sorted(expected)}")
    for name in sorted(given):
        if sha256_of(folder / name) != expected[name]:
            raise ValueError(f"{name}: a digest does not match")
    return text


def plain_files(folder: Path) -> list[str]:
    """The names of all files below a folder, sorted, without those in caches of Python.

    Raises ValueError for a link, a device or a pipe: a link to a folder may be one to anything.
    """
    found: list[str] = []
    pending = [folder]
    while pending:
        for entry in os.scandir(pending.pop()):
            mode, name = entry.stat(follow_symlinks=False).st_mode, Path(entry.path)
            if stat.S_ISDIR(mode):
                if entry.name != CACHES:
                    pending.append(name)
            elif stat.S_ISREG(mode):
                found.append(name.relative_to(folder).as_posix())
            else:
                kind = "a link" if stat.S_ISLNK(mode) else "no file"
                raise ValueError(f"{name.relative_to(folder)} is {kind}; expected plain files")
    return sorted(found)


def verify_tree(folder: Path, listed: Mapping[str, str], unlisted: Callable[[str], bool]) -> None:
    """Check all files below a folder against a list of digests, of which none may be missing.

    Args:
        folder: What has the files.
        listed: The digest of each file by its name.
        unlisted: Whether a file of a name may be there that is not listed.

    Raises ValueError naming the first file that was added, altered or is missing, or is a link.
    """
    there = plain_files(folder)
    added = [name for name in there if name not in listed and not unlisted(name)]
    if added:
        raise ValueError(f"{added[0]} was added after it was packaged")
    missing = sorted(listed.keys() - {*there})
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    for name, digest in listed.items():
        if cached_sha256(folder / name) != digest:
            raise ValueError(f"{name} was altered after it was packaged")
