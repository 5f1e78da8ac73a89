"""What is reported while a command works, and in which form; used by whatever takes minutes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class OutputMode(Enum):
    """In which form a command reports; the value is the seconds between two progress lines."""

    TEXT = 30.0
    QUIET = float("inf")
    JSON = 1.0


@dataclass(frozen=True)
class Bar:
    """How far something is, from 0 to 1."""

    name: str
    share: float
    note: str


@dataclass(frozen=True)
class ProgressUpdate:
    """How far the work of a command is."""

    text: str
    """All of it in a line, for a log file."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """All of it for a machine."""
    bars: Sequence[Bar] = ()
    note: str = ""
    """What the bars do not say, for a terminal; if empty, the text."""
    curve: Sequence[float] = ()
    """Drawn after the note."""
