"""The trial of a search that needs most memory; used by sweep.py, which checks that it fits."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from dca.errors import FieldError
from pipelines.config.yaml_text import flatten
from pipelines.search.config import Choice, Dimension, SearchTask, condition_order
from pipelines.search.space import Space, beside, point_key, required
from pipelines.training.config import TrainingRun
from pipelines.training.memory import peak_bytes

MAX_BESIDE = 20
"""Valid points beside an invalid one whose memory is estimated."""
MAX_BELOW = 32
"""Integers from the high end of a range on that are tried, until one is valid."""
POWERS = [1 << exponent for exponent in range(1, 20)]
"""Sizes whose largest multiple in a range is tried too: a width is one of the heads."""
PASSES = 3
"""Times that all keys are gone through: one may be larger once another has its own value."""


def largest_trial(task: SearchTask) -> TrainingRun:
    """The configuration of the space that needs most memory, found one key after the other, again
    until none changes.

    Where a value is invalid with those found so far, it is tried with each value of another key.
    """
    space, dimensions, known = Space(task), task.search.space, dict[str, int]()

    def memory(point: Mapping[str, Any]) -> int:
        key = point_key(point)
        if key not in known:
            known[key] = peak_bytes(task.base.replace(point), on_gpu=False)
        return known[key]

    valid = filter(space.is_valid, space.some_points({}))
    largest: dict[str, Any] | None = next(valid, None)
    if largest is None:
        return task.base
    for _ in range(PASSES):
        before = largest
        for key in condition_order(dimensions):
            sizes = _sizes(dimensions[key], task.base.replace(largest))
            found = _points_with(key, sizes, largest, space, dimensions)
            largest = max([largest, *found], key=memory)
        if largest == before:
            break
    return task.base.replace(largest)


def _points_with(
    key: str,
    sizes: list[Choice],
    largest: Mapping[str, Any],
    space: Space,
    dimensions: Mapping[str, Dimension],
) -> Iterator[dict[str, Any]]:
    """The valid points with another value of one key that may need most memory."""
    try:
        needed = required(dimensions, key)
    except FieldError:  # it can never apply
        return

    def completed(given: Mapping[str, Any]) -> dict[str, Any]:
        values = {**largest, **needed, **given}
        return space.point(lambda name, one: values[name] if name in values else one.examples[-1])

    for value in sizes:
        point = completed({key: value})
        if point.get(key) != value:  # the base does not meet its condition
            return
        if space.is_valid(point):
            yield point
            if type(value) in (int, float):
                return
            continue
        near = map(completed, beside(dimensions, {key: value}))
        yield from islice(filter(space.is_valid, near), MAX_BESIDE)


def _sizes(dimension: Dimension, run: TrainingRun) -> list[Choice]:
    """The values of a range that may need most memory: what is no number, then the numbers, the
    largest first, of which the first valid one counts. A model of each would take minutes."""
    if (integers := dimension.integers) is not None:
        divisors = [*POWERS, *(size for size in _whole_numbers(run) if size > 1)]
        multiples = {integers[-1] // divisor * divisor for divisor in divisors}
        tried = {integers[0], *integers[:-MAX_BELOW:-1], *(m for m in multiples if m in integers)}
        return sorted(tried, reverse=True)
    values = list(dimension.choice or ())
    numbers = [one for one in values if isinstance(one, int | float) and not isinstance(one, bool)]
    others = [one for one in values if one is None or isinstance(one, bool | str)]
    return [*others, *sorted(numbers, reverse=True)]


def _whole_numbers(run: TrainingRun) -> set[int]:
    """The sizes of a model and its training, and their doubles."""
    values = dict(flatten(run.model_dump(mode="json", include={"model", "train"}))).values()
    return {number * factor for number in values if type(number) is int for factor in (1, 2)}
