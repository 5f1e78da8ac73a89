"""Names of checkpoints in a run's folder, and which of them are complete."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from pipelines.storage.digests import DIGESTS_FILE
from pipelines.storage.remote import Folder


def path_of(folder: Path, step: int) -> Path:
    """The checkpoint of a step in a folder of this machine."""
    return folder / f"{step:08d}"


def step_of(path: Folder) -> int:
    """The step of a checkpoint."""
    return int(path.name[:8])


def list_checkpoints(folder: Folder) -> Sequence[Folder]:
    """Complete checkpoints, oldest first.

    On this machine a complete one has been renamed to its step; in remote storage it has digests.
    """
    if isinstance(folder, Path):
        found = sorted(folder.glob(8 * "[0-9]"))  # others may have left files and links beside them
        return [path for path in found if path.is_dir() and not path.is_symlink()]
    return [folder / name for name in complete_names(folder.files())]


def complete_names(files: Iterable[str]) -> list[str]:
    """Names of the complete checkpoints among files in remote storage, oldest first."""
    paths = [file.split("/") for file in files]
    return sorted(path[0] for path in paths if path[0][0].isdigit() and path[1:] == [DIGESTS_FILE])


def checkpoints_of_step(folder: Folder, step: int) -> Sequence[Folder]:
    """The checkpoints of one step: in remote storage two writers may each have left one."""
    if isinstance(folder, Path):
        path = path_of(folder, step)
        return [] if path.is_symlink() else [path]
    return [path for path in list_checkpoints(folder) if step_of(path) == step]
