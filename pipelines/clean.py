"""What nothing needs any more, with its size and the reason; with --delete it is deleted.

    python pipelines/clean.py [--storage PLACE] [--delete]

These are checkpoints of runs that have finished or were deleted, temporary folders of commands that
were killed, and files of local Ray clusters that have ended. Checkpoints of trials that
`sweep.py --retry-failed` can run again stay, although their search has finished.
"""

try:
    from pipelines.console import end_on_interrupt
except ModuleNotFoundError:  # this project is not installed: only what lies beside this is found
    from console import end_not_installed as end_on_interrupt  # type: ignore

if __name__ == "__main__":
    end_on_interrupt()

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.console.command import DONE, FAILURE, Parser, run_command
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.process import process_restored
from pipelines.console.progress import Progress
from pipelines.console.text import counted

if TYPE_CHECKING:  # MLflow, which takes seconds
    from pipelines.storage.remote import Folder
    from pipelines.tracking.client import RetryingClient

DEFAULT_STORAGE = "runs"
TRIALS = "trials"
CHECKPOINTS = (TRIALS, "fits")
"""Folders of storage with one folder for each run of a search or a training."""

FINISHED = "its run has finished"
ENDED = {"FINISHED": FINISHED, "DELETED": "its run was deleted"}
"""Why checkpoints are not needed, by the state of their run."""
KILLED = "its command was killed"
NEEDED = "its run is going on again"
LOOKING = "looking for what nothing needs"


@dataclass(frozen=True)
class Leftover:
    """A folder that nothing needs."""

    place: "Folder"
    reason: str
    is_needed: Callable[[], bool] = lambda: False
    """Whether it is needed after all: a sweep may have resumed its run since it was found."""


@process_restored()
def main(argv: Sequence[str]) -> int:
    """List what nothing needs, or delete it."""
    arguments = _parse(argv)
    from pipelines.console.text import for_stream, one_line
    from pipelines.storage.location import Storage

    storage = Storage.of(arguments.storage, key="--storage").folder
    is_new = arguments.storage == DEFAULT_STORAGE and not storage.exists()
    if isinstance(storage, Path) and not (storage.is_dir() or is_new):
        problem = "is no folder" if storage.exists() else "no such folder"
        raise ConfigError(Problem(problem, f"--storage={one_line(arguments.storage)}"))
    found, failed = [*_of_storage(storage), *_of_this_machine()], 0
    for one in found:
        line = f"{_size_of(one.place)}  {one.place}: {one.reason}"
        if arguments.delete and (error := _delete(one)):
            line, failed = f"{line}; cannot be deleted: {error}", failed + 1
        print(for_stream(line, sys.stdout))
    if not found:
        print("there is nothing that nothing needs")
    elif arguments.delete:
        print(f"{len(found) - failed} of {len(found)} deleted")
    else:
        print("nothing was deleted; to delete all of it: the same command with --delete")
    return FAILURE if failed else DONE


def _of_storage(storage: "Folder") -> Iterator[Leftover]:
    """Checkpoints and unfinished copies. Runs that the tracking store does not have stay."""
    from pipelines.storage.scratch import abandoned_folders

    if not storage.exists():
        return
    yield from _checkpoints(storage)
    if isinstance(storage, Path):
        for inside in (storage / "corpora", storage / "starts"):
            yield from (Leftover(path, KILLED) for path in abandoned_folders(inside))


def _checkpoints(storage: "Folder") -> list[Leftover]:
    """Those that are not needed; on a server with thousands of runs they are looked up for minutes,
    which is shown."""
    from pipelines.tracking.client import connect_existing

    found, text, progress = list[Leftover](), LOOKING, Progress(stderr=True)
    with progress.working(text), progress.watching(lambda: text):
        folders = [
            (kind, storage / kind / n) for kind in CHECKPOINTS for n in _names(storage / kind)
        ]
        client = connect_existing() if folders else None
        for number, (kind, place) in enumerate(folders, 1):
            assert client is not None
            text = f"{LOOKING}: run {number:,} of {len(folders):,}"
            found += _of_run(client, place, with_trials=kind == TRIALS)
    return found


def _of_run(client: "RetryingClient", folder: "Folder", *, with_trials: bool) -> list[Leftover]:
    """What is not needed of a run's checkpoints: all, or what no trial may continue from."""
    reason = ENDED.get(client.state_of(folder.name) or "")
    if reason is None:
        return []
    needed = _needed_trials(client, folder.name) if with_trials and reason == FINISHED else set()
    names = _names(folder) if needed else []
    places = [folder / name for name in names if name not in needed]
    if not needed.intersection(names):
        places = [folder]

    def is_needed(place: "Folder") -> bool:
        again = [one.place for one in _of_run(client, folder, with_trials=with_trials)]
        return place not in again and folder not in again

    return [Leftover(place, reason, partial(is_needed, place)) for place in places]


def _needed_trials(client: "RetryingClient", search_run: str) -> set[str]:
    """The names of the folders of a search's trials that are neither complete nor pruned.

    A failed one can be run again from its last checkpoints, and so can one that has not ended. A
    deleted one cannot. Raises EditedError if the tags of one are not what was written.
    """
    from pipelines.console.errors import EditedError
    from pipelines.search.resume import trial_folder_name
    from pipelines.tracking.schema import STATE_TAG, TRIAL_KIND, TRIAL_TAG
    from pipelines.tracking.store import Store

    store, needed = Store(client, client.get_run(search_run).info.experiment_id), set()
    for run in store.children(search_run, TRIAL_KIND):
        tags = run.data.tags
        if tags.get(STATE_TAG) not in ("complete", "pruned"):
            try:
                needed.add(trial_folder_name(int(tags[TRIAL_TAG])))
            except (KeyError, ValueError):
                message = f"run {run.info.run_id}: tag {TRIAL_TAG} was edited or removed"
                raise EditedError(message) from None
    return needed


def _names(folder: "Folder") -> list[str]:
    if isinstance(folder, Path):
        if folder.is_symlink() or not folder.is_dir():  # what a link points to lies elsewhere
            return []
        with suppress(FileNotFoundError):  # another command has just deleted it
            folders = (path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
            return sorted(path.name for path in folders)
        return []
    return sorted({name.partition("/")[0] for name in folder.files()})


def _of_this_machine() -> Iterator[Leftover]:
    from pipelines.cluster.local.sessions import ended_sessions
    from pipelines.storage.scratch import abandoned_folders

    for path in abandoned_folders(Path(tempfile.gettempdir())):
        yield Leftover(path, KILLED)
    for path in ended_sessions():
        yield Leftover(path, "its Ray has ended")


def _size_of(place: "Folder") -> str:
    if not isinstance(place, Path):
        return counted(len(place.files()), "file")
    size = 0
    for folder, _, names in os.walk(place):  # which leaves out what is deleted meanwhile
        for name in names:
            with suppress(FileNotFoundError):
                size += Path(folder, name).lstat().st_size
    return f"{size / 2**20:,.1f} MiB"


def _delete(leftover: Leftover) -> str:
    """Returns why it failed, if it did."""
    from pipelines.console.errors import StorageError
    from pipelines.console.text import reason_of

    place = leftover.place
    try:
        if leftover.is_needed():
            return NEEDED
        if isinstance(place, Path):
            while os.path.lexists(place):
                with suppress(FileNotFoundError):  # its own command deletes it meanwhile
                    shutil.rmtree(place)
        else:
            place.remove()
    except (OSError, StorageError) as error:
        inside = getattr(error, "filename", None)
        which = f": {inside}" if inside and inside != str(place) else ""
        return f"{reason_of(error)}{which}"
    return ""


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="clean.py",
        description="What nothing needs any more: checkpoints of runs that have finished or were "
        "deleted, temporary folders of killed commands, files of local Ray clusters that ended.",
    )
    parser.add_argument(
        "--storage", default=DEFAULT_STORAGE, metavar="PLACE", help="a folder or URI (runs)"
    )
    parser.add_argument("--delete", action="store_true", help="delete it; else it is only shown")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
