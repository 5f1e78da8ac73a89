"""Files by a path, folder or glob, and their bytes in chunks; used by the corpora of files."""

import errno
import fnmatch
import glob
import itertools
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import nearest, one_line, reason_of

CHUNK_BYTES = 1 << 22
RECURSIVE = "**"
"""The part of a glob that stands for any folders."""
MOST_VISITS = 2
"""Times that a folder is walked: through folders that link to each other there may be more ways to
it than can be counted. After two its files have been found twice, which is refused."""


def find_files(pattern: str, *, key: str) -> list[Path]:
    """The file of that name, all files below the folder of that name, or those that match a glob.

    A folder's files are in the order of their paths, those of a glob in the order of the texts of
    these. Hidden files count in a folder; in a glob where its own part begins with a dot. Links are
    followed.

    Args:
        pattern: A path, each part of which is taken literally if there is something of that name,
            else as a part of a glob.
        key: The configuration key of the pattern.

    Raises:
        ConfigError: There is no file, or one cannot be read or would be read twice: nothing is left
            out silently.

    """
    try:
        if _mode(Path(pattern)) is not None:
            paths = sorted(_files_at(Path(pattern)))
        else:
            paths = sorted(set(_matches(pattern)), key=str)
        _require_once(paths)
    except OSError as error:
        message = f"{one_line(error.filename or pattern)}: {reason_of(error)}"
        raise ConfigError(Problem(message, key)) from None
    if not paths:
        found, near = "no such file, folder or glob match", _nearest(Path(pattern))
        if _mode(Path(pattern)) is not None:
            found, near = "no file in this folder, nor below it", ""
        raise ConfigError(Problem(f"{one_line(pattern)}: {found}", key, nearest=near))
    return paths


def _nearest(path: Path) -> str:
    """The path that is closest to one that is not there, by the name of its first missing part;
    empty if there is none, or that part is a glob."""
    try:
        pairs = itertools.pairwise((path, *path.parents))
        missing = next(one for one, folder in pairs if _mode(folder) is not None)
        names = [inside.name for inside in missing.parent.iterdir()]
    except (OSError, StopIteration):  # a part is a file, or cannot be read
        return ""
    found = "" if glob.has_magic(missing.name) else nearest(missing.name, names)
    return str(missing.parent / found / path.relative_to(missing)) if found else ""


def _mode(path: Path) -> int | None:
    """The mode of what a path leads to; None if there is nothing of that name."""
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ENOENT and path.is_symlink():
            raise _refusal("a link that leads nowhere", path) from None
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            return None
        raise
    except ValueError:  # a zero byte
        return None


def _is_folder(path: Path) -> bool:
    """Whether a path leads to a folder; raises OSError if it leads to neither that nor a file."""
    mode = _mode(path)
    if mode is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise _refusal("neither a file nor a folder", path)
    if stat.S_ISDIR(mode) and path.is_symlink():
        parent = path.parent.resolve()
        if path.resolve() in (parent, *parent.parents):
            raise _refusal("a link to a folder that contains it", path)
    return stat.S_ISDIR(mode)


def _refusal(message: str, path: Path) -> OSError:
    return OSError(errno.EINVAL, message, str(path))


def _files_at(path: Path, folders: set[Path] | None = None) -> Iterator[Path]:
    """The file itself, or those below a folder, however deep; also adds all `folders` to a set."""
    waiting, visits = [path], Counter[tuple[int, int]]()
    while waiting:
        one = waiting.pop()
        if not _is_folder(one):
            yield one
            continue
        if _is_walked(one, visits):
            continue
        waiting += one.iterdir()
        if folders is not None:
            folders.add(one)


def _is_walked(folder: Path, visits: Counter[tuple[int, int]]) -> bool:
    """Whether a folder has been walked as often as it need be; counts the visit."""
    status = folder.stat()
    place = status.st_dev, status.st_ino
    visits[place] += 1
    return visits[place] > MOST_VISITS


def _matches(pattern: str) -> Iterator[Path]:
    """The files that match a glob; those that `glob.glob` cannot read it leaves out."""
    parts = Path(pattern).parts
    for path in _expand(Path(), parts):
        if not _is_folder(path):
            yield path
        elif parts[-1] != RECURSIVE and parts[-2:] != (RECURSIVE, "*"):  # else its files match
            message = "a folder, which matches too; expected files, or ** for all that are below it"
            raise _refusal(message, path)


def _expand(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """What matches the parts of a glob below a folder."""
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    if part == RECURSIVE:
        yield from _expand_recursive(folder, rest)
    elif not glob.has_magic(part) or _mode(folder / part) is not None:
        if _mode(folder / part) is not None:
            yield from _expand(folder / part, rest)
    else:
        for inside in folder.iterdir():
            hidden = inside.name.startswith(".") and not part.startswith(".")
            matches = not hidden and fnmatch.fnmatchcase(inside.name, part)
            if matches and (not rest or _is_folder(inside)):
                yield from _expand(inside, rest)


def _expand_recursive(folder: Path, rest: Sequence[str]) -> Iterator[Path]:
    """What matches the rest of a glob in a folder and all folders below that are not hidden."""
    waiting, visits = [folder], Counter[tuple[int, int]]()
    while waiting:
        one = waiting.pop()
        if _is_walked(one, visits):
            continue
        if rest:
            yield from _expand(one, rest)
        for inside in one.iterdir():
            if inside.name.startswith("."):
                continue
            if _is_folder(inside):
                waiting.append(inside)
            elif not rest:
                yield inside


def _require_once(paths: Sequence[Path]) -> None:
    """Refuse a folder, or a file, that is reached by several paths: over links of either kind."""
    seen: dict[Any, Path] = {}
    for folder in dict.fromkeys(path.parent for path in paths):
        first = seen.setdefault(os.path.realpath(folder), folder)
        if first != folder:
            raise _refusal(f"the same folder as {one_line(first)}; expected it once", folder)
    for path in paths:
        found = path.stat()
        first = seen.setdefault((found.st_dev, found.st_ino), path)
        if first != path:
            raise _refusal(f"the same file as {one_line(first)}; expected it once", path)


def read_files(paths: Iterable[Path]) -> Iterator[bytes]:
    """The bytes of several files in turn, in chunks."""
    for path in paths:
        with path.open("rb") as file:
            yield from read_chunks(file)


def read_chunks(file: Any) -> Iterator[bytes]:
    """The bytes of an open file, in chunks."""
    return iter(lambda: file.read(CHUNK_BYTES), b"")


def contained(pattern: str, places: Iterable[Path], *, key: str) -> list[Path]:
    """Which of some files and folders, that need not exist, are part of what `find_files` finds.

    Used to refuse a text that changes while it is used. Raises ConfigError as `find_files` does.
    """
    real, named, folders = {place: _real(place) for place in places}, Path(pattern), set[Path]()
    if _mode(named) is None:
        files = find_files(pattern, key=key)
    elif found := [one for one in real if real[one].is_relative_to(_real(named))]:
        return found
    else:
        find_files(pattern, key=key)
        files = list(_files_at(named, folders))
    inside = {_real(folder) for folder in folders}  # a link may lead to a place
    around = {one for path in {*map(_real, files), *inside} for one in (path, *path.parents)}
    return [
        place
        for place, path in real.items()
        if path in around or not inside.isdisjoint(path.parents)
    ]


def _real(path: Path) -> Path:
    """Where a path leads to; of a link to itself that link, which `Path.resolve` refuses."""
    return Path(os.path.realpath(path))
