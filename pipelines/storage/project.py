"""Where the project's own files are; used by all that copy, hash or run its code."""

import shlex
from pathlib import Path

from pipelines.console.text import shown_path

ROOT = Path(__file__).parents[2]
"""The folder with the packages `dca` and `pipelines`."""


def command_line(script: str | Path, *arguments: object) -> str:
    """A command to run, as a shell reads it: paths and names may have spaces."""
    return shlex.join(["python", *map(str, (script, *arguments))])


def option(name: str, text: str) -> list[str]:
    """The arguments of an option with any text: one that begins with a dash is joined to it."""
    return [f"{name}={text}"] if text.startswith("-") else [name, text]


def script(name: str) -> str:
    """Path of a command's script in a command to run, as it is called from the current folder."""
    return shown_path(ROOT / "pipelines" / name)
