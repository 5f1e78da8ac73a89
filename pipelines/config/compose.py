"""One experiment made of several YAML files: `extends`, and which file a value comes from.

Used by pipelines/experiment. The files that a file extends come before it, each after those it
extends itself; later wins. Mappings are merged key by key; anything else is replaced as a whole,
lists and the dimensions of a search space among it.
"""

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.config.yaml_text import MAX_CHARACTERS, parse
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import nearest, one_line, quote_value, reason_of

EXTENDS = "extends"
EXPERIMENTS = Path(__file__).parents[2] / "experiments"
"""The project's own."""
MAX_FILES = 50
"""Files of one experiment, each counted as often as it is named."""


class Layer(NamedTuple):
    """The keys and values of one file, without those it extends."""

    source: str
    data: Mapping[str, Any]


def read_layers(path: Path) -> list[Layer]:
    """The layers of a file, of which later ones win: those of the files it extends, then its own.

    Names in `extends` are relative to the file that contains them. Raises ConfigError.
    """
    layers: list[Layer] = []
    _read(path, (), layers)
    return layers


def folder_of(path: Path) -> Path:
    """The folder to which what a file names is relative: of a pipe the working folder."""
    return Path() if path.is_fifo() else path.parent


def merge(layers: Sequence[Layer], *, dotted: Collection[str] = ()) -> dict[str, Any]:
    """All layers in one, in new mappings: changing them changes no layer.

    `dotted` are the mappings whose own keys are dotted, and whose values are replaced as a whole.
    """
    paths = {tuple(name.split(".")) for name in dotted}
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge_two(merged, layer.data, paths)
    return merged


def source_of(layers: Sequence[Layer], *, default: str) -> Callable[[str], str]:
    """A function from a problem's dotted key to its source, the last layer with that key.

    A key of no layer has its default value: it is the experiment as a whole that is wrong, which
    has the source `default`.
    """
    sources: dict[str, str] = {}
    leaves: dict[str, str] = {}
    for layer in layers:
        for key, value in _keys(layer.data):
            sources[key] = layer.source
            if not isinstance(value, Mapping):  # a list, whose items have longer keys
                leaves[key] = layer.source

    def find(key: str) -> str:
        if key in sources:
            return sources[key]
        ends = [match.start() for match in re.finditer(r"\.", key)]
        return next((leaves[key[:end]] for end in reversed(ends) if key[:end] in leaves), default)

    return find


def _keys(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a layer, sections included, and its value."""
    for key, value in data.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")


def _read(path: Path, above: tuple[Path, ...], layers: list[Layer]) -> None:
    """Append the layers of a file; `above` are the files that lead to it through `extends`."""
    text = _text(path, above)
    if any(path.samefile(file) for file in above):
        cycle = " -> ".join(one_line(file) for file in (*above, path))
        raise ConfigError(Problem(f"cyclic: {cycle}", EXTENDS, str(above[-1])))
    if len(above) + len(layers) == MAX_FILES:
        message = f"expected at most {MAX_FILES} files in one experiment"
        raise ConfigError(Problem(message, EXTENDS, str(above[-1])))
    data = parse(text, source=str(path))
    if not isinstance(data, dict):
        message = f"expected keys and values, got {quote_value(data)}"
        raise ConfigError(Problem(message, source=str(path)))
    names = data.pop(EXTENDS, [])
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or not name:
            message = f"expected a file or a list of files, got {quote_value(names)}"
            raise ConfigError(Problem(message, EXTENDS, str(path)))
        if "://" in name:
            message = f"expected a file of this machine, got {quote_value(name)}"
            raise ConfigError(Problem(message, EXTENDS, str(path)))
        _read(folder_of(path) / os.path.expanduser(name), (*above, path), layers)  # noqa: PTH111
    layers.append(Layer(str(path), data))


def _text(path: Path, above: tuple[Path, ...]) -> str:
    """The text of a file that is named by the last of the files `above`."""
    try:
        with _pipe_shown(path), path.open(encoding="utf-8") as file:
            return file.read(MAX_CHARACTERS + 1)  # enough to be refused: a device has no end
    except FileNotFoundError:
        found = nearest(str(path), _neighbours(path)) or _shipped(path)
        raise _file_problem("no such file", path, above, found) from None
    except IsADirectoryError:
        raise _file_problem("expected a file, got a folder", path, above) from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, in the name or in the file
        kind = "" if isinstance(error, OSError) else " as UTF-8 text"
        raise _file_problem(f"cannot be read{kind}: {reason_of(error)}", path, above) from None


def _pipe_shown(path: Path) -> AbstractContextManager[None]:
    """Show that a pipe is read, which may have no writer yet."""
    if not path.is_fifo():
        return nullcontext()
    from pipelines.console.progress import Progress  # 0.1 s

    return Progress(stderr=True).watching(lambda: f"reading {one_line(path)}")


def _file_problem(
    message: str, path: Path, above: tuple[Path, ...], nearest: str = ""
) -> ConfigError:
    """A problem of a file, as one of the file that names it, if any does."""
    if not above:
        return ConfigError(Problem(message, source=str(path), nearest=nearest))
    return ConfigError(Problem(f"{one_line(path)}: {message}", EXTENDS, str(above[-1]), nearest))


def _neighbours(path: Path) -> list[str]:
    """Files in the folder of a missing file, or in the folders beside a missing folder."""
    folder = path.parent
    found = folder.glob("*.yaml") if folder.is_dir() else folder.parent.glob("*/*.yaml")
    return [str(file) for file in sorted(found)]


def _shipped(path: Path) -> str:
    """The project's experiment of a name, as a missing file has it with or without its end."""
    file = EXPERIMENTS / f"{path.stem}.yaml"
    return os.path.relpath(file) if file.is_file() else ""


def _merge_two(
    earlier: Mapping[str, Any],
    later: Mapping[str, Any],
    dotted: Collection[tuple[str, ...]],
    path: tuple[str, ...] = (),
) -> dict[str, Any]:
    merged = dict(earlier)
    for key, value in later.items():
        old = merged.get(key)
        if path in dotted and value is None and old is not None:
            del merged[key]
        elif path not in dotted and isinstance(value, dict):
            inner = old if isinstance(old, dict) else {}
            merged[key] = _merge_two(inner, value, dotted, (*path, key))
        else:
            merged[key] = value
    return merged
