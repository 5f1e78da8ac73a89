"""One experiment made of several YAML files: `extends`, and which file a value comes from.

A file's parts come before it, each after what it extends itself; later wins. Mappings are merged
key by key; anything else, lists and the dimensions of a search space among it, is replaced whole.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.runtime.errors import ConfigError, nearest, one_line, show
from pipelines.runtime.plain_yaml import MOST, parse

EXTENDS = "extends"
SPACE = ("search", "space")
"""Where the keys of a mapping are themselves dotted, and its values are whole."""
MOST_FILES = 50
"""Files of one experiment, each counted as often as it is named."""


class Layer(NamedTuple):
    """What one file says, without what it extends."""

    source: str
    data: Mapping[str, Any]


def read(path: Path) -> list[Layer]:
    """The layers of a file: the parts it extends, in the order in which they win, and itself last.

    Names in `extends` are relative to the file they stand in. Raises ConfigError.
    """
    layers: list[Layer] = []
    _read(path, (), layers)
    return layers


def merge(layers: Sequence[Layer]) -> dict[str, Any]:
    """All layers in one, in mappings of its own: changing them changes no layer."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _over(merged, layer.data)
    return merged


def blame(layers: Sequence[Layer], *, default: str) -> Callable[[str], str]:
    """Tells the source of a problem that begins with its dotted key: the last layer with that key.

    A key that stands in no layer has its default value: then the whole does not fit together.
    """
    starts: dict[str, str] = {}
    for layer in layers:
        starts.update(dict.fromkeys(_problem_starts(layer.data), layer.source))

    def source(problem: str) -> str:
        ends = [match.end() for match in re.finditer(r"[.:]", problem)]
        return next((starts[problem[:e]] for e in reversed(ends) if problem[:e] in starts), default)

    return source


def _problem_starts(data: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """`key:` of everything in a layer, and `key.` of what is no section: a list's items."""
    for key, value in data.items():
        yield f"{prefix}{key}:"
        if isinstance(value, Mapping):
            yield from _problem_starts(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}."


def _read(path: Path, above: tuple[Path, ...], layers: list[Layer]) -> None:
    """Append the layers of a file that is named by the last of the files `above`."""
    by = f"{one_line(above[-1])}: {EXTENDS}: " if above else ""
    text = _text(path, by)
    if any(path.samefile(file) for file in above):
        circle = " -> ".join(one_line(file) for file in (*above, path))
        raise ConfigError(f"{by}goes in a circle: {circle}")
    if len(above) + len(layers) == MOST_FILES:
        raise ConfigError(f"{by}expected at most {MOST_FILES} files in one experiment")
    data = parse(text, source=str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{one_line(path)}: expected keys and values, got {show(data)}")
    names = data.pop(EXTENDS, [])
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or not name:
            problem = f"{EXTENDS}: expected a file or a list of files, got {show(names)}"
            raise ConfigError(f"{one_line(path)}: {problem}")
        _read(path.parent / name, (*above, path), layers)
    layers.append(Layer(str(path), data))


def _text(path: Path, by: str) -> str:
    name = f"{by}{one_line(path)}"
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MOST + 1)  # enough to be refused: a device has no end
    except FileNotFoundError:
        near = one_line(nearest(str(path), _neighbours(path)))
        raise ConfigError(f"{name}: no such file{near}") from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, in the name or in the file
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ConfigError(f"{name}: cannot be read as UTF-8 text: {reason}") from None


def _neighbours(path: Path) -> list[str]:
    """Experiments where a missing one was looked for, or in the folders beside a missing folder."""
    folder = path.parent
    found = folder.glob("*.yaml") if folder.is_dir() else folder.parent.glob("*/*.yaml")
    return [str(file) for file in sorted(found)]


def _over(
    below: Mapping[str, Any], above: Mapping[str, Any], place: tuple[str, ...] = ()
) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if place == SPACE and value is None and old is not None:
            del merged[key]
        elif place != SPACE and isinstance(value, dict):
            merged[key] = _over(old if isinstance(old, dict) else {}, value, (*place, key))
        else:
            merged[key] = value
    return merged
