"""What a command reports of its progress, and in which mode.

Used by whatever takes minutes; printed by pipelines.console.progress. Loads no library.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class OutputMode(Enum):
    """How a command reports; the value is the time between two progress lines, in seconds."""

    TEXT = 15.0
    QUIET = float("inf")
    JSON = 1.0


@dataclass(frozen=True)
class Bar:
    """A progress bar."""

    name: str
    share: float
    """Done so far, from 0 to 1."""
    note: str
    """Behind the bar."""


@dataclass(frozen=True)
class ProgressUpdate:
    """The state of a command's work at one time."""

    text: str
    """The state in one line, for a log file."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """The state as values, for --json."""
    bars: Sequence[Bar] = ()
    note: str = ""
    """What the bars do not show, for a terminal; if empty, the text is shown."""
    curve: Sequence[float] = ()
    """Drawn after the note."""
