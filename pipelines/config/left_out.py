"""What a change of a key leaves of a search: of its space, and of its points to try first.

On plain data. Used by pipelines/experiment and pipelines/search, for command lines and arms.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any


def leave_out(
    space: dict[str, Any], key: str, value: Any, base: Callable[[str], Any] = lambda key: None
) -> None:
    """A key with a value is no longer searched, nor are keys that apply with another value only.

    In turn a key whose condition names one of those goes by the base's value of it, which `base`
    returns, and drops out with it where they are options of one kind. `space` is plain data, which
    changes.
    """
    space.pop(key, None)
    left = [(key, value, False)]
    while left:
        other, wanted, follows = left.pop()
        for name, dimension in list(space.items()):
            when = dimension.get("when") if isinstance(dimension, dict) else None
            if not isinstance(when, dict) or other not in when:
                continue
            section = other.rpartition(".")[0]
            together = follows and section.count(".") and name.startswith(f"{section}.")
            if when[other] != wanted or together:
                del space[name]
                left.append((name, base(name), True))


def without_keys(points: Sequence[Any], keys: Set[str]) -> list[Any]:
    """Points to try first without keys that are no longer searched.

    Those that are then empty, or equal to an earlier one, drop out. A point may be plain data that
    is not checked yet.
    """
    found: list[Any] = []
    for point in points:
        if isinstance(point, Mapping):
            point = {key: value for key, value in point.items() if key not in keys}
        if point and point not in found:
            found.append(point)
    return found
