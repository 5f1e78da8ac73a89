"""Changes from the command line: `key=value`, and `key=a,b,c` for a grid of trials.

A key that is given a value is no longer searched.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from pipelines.runtime.compose import EXTENDS
from pipelines.runtime.errors import ConfigError, nearest, one_line
from pipelines.runtime.plain_yaml import DEEPEST, flatten, parse

SPACE = "search.space."


class Change(NamedTuple):
    """One key and its value, or one key and the dimension that a comma list makes of it."""

    key: str
    value: Any
    is_grid: bool = False


def read_changes(overrides: Sequence[str], *, grid_keys: Collection[str]) -> list[Change]:
    """The changes that a command line asks for, in its order. Raises ConfigError.

    Comma lists make the search a grid over their keys alone, which must be among `grid_keys`.
    """
    changes = [_change(override, grid_keys) for override in overrides]
    return [*_grid_search(), *changes] if any(change.is_grid for change in changes) else changes


def apply_changes(data: dict[str, Any], changes: Sequence[Change]) -> dict[str, Any]:
    """Change plain data; returns what was set, sections included."""
    given: dict[str, Any] = {}
    for change in changes:
        place = f"{SPACE}{change.key}" if change.is_grid else change.key
        put(given, place, change.value)
        put(data, place, change.value)
        if not change.is_grid:
            for key, _ in flatten({change.key: change.value}):
                _space(data).pop(key, None)
    return given


def put(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, making the sections it lies in. Null takes a dimension out of the space."""
    if key.startswith(SPACE):  # the keys of a space are dotted themselves
        *parents, leaf = ("search", "space", key.removeprefix(SPACE))
    else:
        *parents, leaf = key.split(".")
    for parent in parents:
        below = data.get(parent)
        data[parent] = below = below if isinstance(below, dict) else {}
        data = below
    if key.startswith(SPACE) and value is None and leaf in data:
        del data[leaf]
    else:
        data[leaf] = value


def _grid_search() -> list[Change]:
    """What stays of a file's search beside a grid: its scheduler and its limits."""
    return [
        Change("search.space", {}),
        Change("search.sampler.name", "grid"),
        Change("search.trials", None),
        Change("search.try_first", []),
        Change("search.warm_start", []),
    ]


def _change(override: str, grid_keys: Collection[str]) -> Change:
    key, _, text = override.partition("=")
    where = f"command line: {one_line(override)}"
    parts = key.split(".")
    if not key.isprintable() or not all(parts) or len(parts) > DEEPEST:
        raise ConfigError(f"{where}: expected a key such as train.tokens before the =")
    if key == EXTENDS:
        raise ConfigError(f"{where}: expected in a file alone")
    values = _values(text, where)
    if len(values) == 1:
        return Change(key, values[0])
    if key not in grid_keys:
        grid = "a comma list is a grid, for sweep.py, over a key of model or train"
        near = nearest(key, grid_keys)
        raise ConfigError(f"{where}: {grid}; text with a comma needs quotes{near}")
    if any(isinstance(value, list | dict) for value in values):
        raise ConfigError(f"{where}: expected a number, a word or null between commas")
    if len({(isinstance(value, bool), value) for value in values}) < len(values):  # 0 is 0.0
        raise ConfigError(f"{where}: expected each value once")
    return Change(key, {"choice": values}, is_grid=True)


def _values(text: str, where: str) -> list[Any]:
    """What stands between the commas outside brackets, braces and quotes, as YAML sees them."""
    if "," in text:
        with suppress(ConfigError):  # then it is one value, right or wrong
            values: list[Any] = parse(f"[{text}\n]", source=where)
            if len(values) > 1:
                return values
    return [parse(text, source=where)]


def _space(data: Mapping[str, Any]) -> dict[str, Any]:
    search = data.get("search")
    space = search.get("space") if isinstance(search, dict) else None
    return space if isinstance(space, dict) else {}
