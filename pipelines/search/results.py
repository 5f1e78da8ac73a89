"""Results of the stages search and select.

Stored in the tracking store by the engine; read by the stages after them, the cost estimate and the
reports.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Searched:
    """A search whose trials have ended."""

    search_run: str
    """The MLflow run of the search, the parent of its trials' runs."""
    trials: dict[str, int]
    """Number of trials by state: complete, pruned and failed."""
    front: tuple[tuple[int, float, float], ...]
    """The Pareto front, of each trial its number and its two objectives; empty with one
    objective."""
    selection: str
    """Digest of which trials the search consists of, and of their states."""


@dataclass(frozen=True)
class Selected:
    """The winner of a search."""

    trial: int
    """Its number."""
    run_id: str
    values: dict[str, Any]
    """Values of its searched keys."""
    objective: float
