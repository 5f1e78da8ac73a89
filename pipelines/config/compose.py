"""One experiment made of several YAML files: `extends`, and which file a value comes from.

A file's parts come before it, each after what it extends itself; later wins. Mappings are merged
key by key; anything else, lists and the dimensions of a search space among it, is replaced whole.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.config.yaml_text import MAX_CHARACTERS, parse
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import nearest, one_line, quote_value

EXTENDS = "extends"
MAX_FILES = 50
"""Files of one experiment, each counted as often as it is named."""


class Layer(NamedTuple):
    """What one file says, without what it extends."""

    source: str
    data: Mapping[str, Any]


def read_layers(path: Path) -> list[Layer]:
    """The layers of a file: the parts it extends, in the order in which they win, and itself last.

    Names in `extends` are relative to the file they stand in. Raises ConfigError.
    """
    layers: list[Layer] = []
    _read(path, (), layers)
    return layers


def merge(layers: Sequence[Layer], *, dotted: Collection[str] = ()) -> dict[str, Any]:
    """All layers in one, in mappings of its own: changing them changes no layer.

    `dotted` are the mappings whose own keys are dotted, and whose values are whole.
    """
    places = {tuple(name.split(".")) for name in dotted}
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _over(merged, layer.data, places)
    return merged


def source_of(layers: Sequence[Layer], *, default: str) -> Callable[[str], str]:
    """From a problem's dotted key to its source: the last layer with that key.

    A key that stands in no layer has its default value: then the whole does not fit together.
    """
    whole: dict[str, str] = {}
    items: dict[str, str] = {}
    for layer in layers:
        for key, value in _keys(layer.data):
            whole[key] = layer.source
            if not isinstance(value, Mapping):  # a list, whose items have longer keys
                items[key] = layer.source

    def find(key: str) -> str:
        if key in whole:
            return whole[key]
        ends = [match.start() for match in re.finditer(r"\.", key)]
        return next((items[key[:end]] for end in reversed(ends) if key[:end] in items), default)

    return find


def _keys(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a layer, sections included, and its value."""
    for key, value in data.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")


def _read(path: Path, above: tuple[Path, ...], layers: list[Layer]) -> None:
    """Append the layers of a file that is named by the last of the files `above`."""
    text = _text(path, above)
    if any(path.samefile(file) for file in above):
        circle = " -> ".join(one_line(file) for file in (*above, path))
        raise _problem(f"cyclic: {circle}", above)
    if len(above) + len(layers) == MAX_FILES:
        raise _problem(f"expected at most {MAX_FILES} files in one experiment", above)
    data = parse(text, source=str(path))
    if not isinstance(data, dict):
        message = f"expected keys and values, got {quote_value(data)}"
        raise ConfigError(Problem(message, source=str(path)))
    names = data.pop(EXTENDS, [])
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or not name:
            message = f"expected a file or a list of files, got {quote_value(names)}"
            raise ConfigError(Problem(message, EXTENDS, str(path)))
        _read(path.parent / name, (*above, path), layers)
    layers.append(Layer(str(path), data))


def _text(path: Path, above: tuple[Path, ...]) -> str:
    name = one_line(path)
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_CHARACTERS + 1)  # enough to be refused: a device has no end
    except FileNotFoundError:
        near = nearest(str(path), _neighbours(path))
        raise _problem(f"{name}: no such file", above, one_line(near)) from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, in the name or in the file
        reason = getattr(error, "strerror", None) or one_line(error)
        raise _problem(f"{name}: cannot be read as UTF-8 text: {reason}", above) from None


def _problem(message: str, above: tuple[Path, ...], nearest: str = "") -> ConfigError:
    """A problem of a file that was named on the command line, or by the last of those above."""
    source, key = (str(above[-1]), EXTENDS) if above else ("", "")
    return ConfigError(Problem(message, key, source, nearest))


def _neighbours(path: Path) -> list[str]:
    """Experiments where a missing one was looked for, or in the folders beside a missing folder."""
    folder = path.parent
    found = folder.glob("*.yaml") if folder.is_dir() else folder.parent.glob("*/*.yaml")
    return [str(file) for file in sorted(found)]


def _over(
    below: Mapping[str, Any],
    above: Mapping[str, Any],
    dotted: Collection[tuple[str, ...]],
    place: tuple[str, ...] = (),
) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if place in dotted and value is None and old is not None:
            del merged[key]
        elif place not in dotted and isinstance(value, dict):
            inner = old if isinstance(old, dict) else {}
            merged[key] = _over(inner, value, dotted, (*place, key))
        else:
            merged[key] = value
    return merged
