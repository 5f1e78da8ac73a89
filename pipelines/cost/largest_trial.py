"""The trial of a search that needs most memory; used by sweep.py, which checks that it fits."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

from pipelines.console.errors import ConfigError
from pipelines.search.config import Choice, Dimension, SearchTask, condition_order
from pipelines.search.space import beside
from pipelines.training.config import TrainingRun
from pipelines.training.memory import peak_bytes

MAX_BESIDE = 20
"""Valid points beside an invalid one whose memory is estimated."""


def largest_trial(task: SearchTask) -> TrainingRun:
    """The configuration of the space that needs most memory, found one key after the other.

    Where a value is invalid with those found so far, it is tried with each value of another key.
    """
    largest, space = task.base, task.search.space
    for key in condition_order(space):
        dimension = space[key]
        ends = _sizes(dimension)
        reachable = all(k in space or largest.get(k) == v for k, v in dimension.when.items())
        points = [{**dimension.when, key: end} for end in ends] if reachable else []
        sizes = [largest] if dimension.when else []
        for point in points:
            found = list(_valid_runs(largest, [point]))
            sizes += found or islice(_valid_runs(largest, beside(space, point)), MAX_BESIDE)
            if found and type(point[key]) in (int, float):
                break
        largest = max(sizes, key=lambda run: peak_bytes(run, on_gpu=False), default=largest)
    return largest


def _sizes(dimension: Dimension) -> list[Choice]:
    """The values of a range that may need most memory: what is no number, then the numbers, the
    largest first, of which the first valid one counts. A model of each would take minutes."""
    values = list(dimension.choice or dimension.int or ())
    numbers = [one for one in values if isinstance(one, int | float) and not isinstance(one, bool)]
    others = [one for one in values if one is None or isinstance(one, bool | str)]
    return [*others, *sorted(numbers, reverse=True)]


def _valid_runs(run: TrainingRun, points: Iterable[Mapping[str, Any]]) -> Iterator[TrainingRun]:
    """The run with the values of each point; invalid combinations are left out."""
    for values in points:
        with suppress(ConfigError):
            yield run.replace(values)
