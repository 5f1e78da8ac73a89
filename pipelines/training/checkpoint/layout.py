"""Names of checkpoints in a run's folder, and which of them are complete."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipelines.storage.digests import DIGESTS_FILE
from pipelines.storage.remote import Folder

NAME = re.compile("[0-9]{8,}")
"""Of a checkpoint of this machine: its step, with zeros before it up to 8 digits."""
STEP = re.compile("[0-9]+")


def path_of(folder: Path, step: int) -> Path:
    """The checkpoint of a step in a folder of this machine."""
    return folder / f"{step:08d}"


def step_of(path: Folder) -> int:
    """The step of a checkpoint."""
    return step_in(path.name)


def step_in(name: str) -> int:
    """The step with which the name of a checkpoint begins. Raises ValueError."""
    found = STEP.match(name)
    return int(found.group() if found else name)


def list_checkpoints(folder: Folder) -> Sequence[Folder]:
    """Complete checkpoints, oldest first.

    On this machine a complete one has been renamed to its step; in remote storage it has digests.
    """
    if isinstance(folder, Path):
        found = [path for path in folder.glob("[0-9]*") if NAME.fullmatch(path.name)]
        own = [path for path in found if path.is_dir() and not path.is_symlink()]  # not of others
        return sorted(own, key=step_of)
    return [folder / name for name in complete_names(folder.files())]


def complete_names(files: Iterable[str]) -> list[str]:
    """Names of the complete checkpoints among files in remote storage, oldest first."""
    paths = [file.split("/") for file in files]
    found = [path[0] for path in paths if STEP.match(path[0]) and path[1:] == [DIGESTS_FILE]]
    return sorted(found, key=lambda name: (step_in(name), name))


def checkpoints_of_step(folder: Folder, step: int) -> Sequence[Folder]:
    """The checkpoints of one step: in remote storage two writers may each have left one."""
    if isinstance(folder, Path):
        path = path_of(folder, step)
        return [] if path.is_symlink() else [path]
    return [path for path in list_checkpoints(folder) if step_of(path) == step]
