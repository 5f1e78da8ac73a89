"""Results of the stages search and select.

Stored in the tracking store by the engine; read by the stages after them, the cost estimate and the
reports.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipelines.console.errors import EditedError
from pipelines.console.text import one_line


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
    """Numbers of the trials that the search consists of, as in `0-9,12`; see `read_numbers`."""


@dataclass(frozen=True)
class Selected:
    """The winner of a search."""

    trial: int
    """Its number."""
    run_id: str
    values: dict[str, Any]
    """Values of its searched keys."""
    objective: float | None
    """Of an arm all of whose trials diverged, None."""


def write_numbers(numbers: Iterable[int]) -> str:
    """Numbers as a short text, as in `0-9,12`."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(f"{low}-{high}" if low < high else f"{low}" for low, high in ranges)


def read_numbers(text: str) -> set[int]:
    """The numbers in a text of `write_numbers`. Raises EditedError for another one."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        low, _, high = part.partition("-")
        try:
            found |= set(range(int(low), int(high or low) + 1))
        except ValueError:
            message = f"the result of a search was edited: trials {one_line(text)}"
            raise EditedError(f"{message}; --fresh searches again") from None
    return found
