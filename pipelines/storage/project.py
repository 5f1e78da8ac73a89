"""Where the project's own files are; used by all that copy, hash or run its code."""

from pathlib import Path

from pipelines.console.text import shown_path

ROOT = Path(__file__).parents[2]
"""The folder with the packages `dca` and `pipelines`."""


def script(name: str) -> str:
    """Path of a command's script in a command to run, as it is called from the current folder."""
    return shown_path(ROOT / "pipelines" / name)
