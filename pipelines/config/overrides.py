"""Changes from the command line: `key=value`, and `key=a,b,c` for several values of a key.

Used by pipelines/experiment, for every command that takes changes.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

from pipelines.config.compose import EXTENDS
from pipelines.config.yaml_text import MAX_DEPTH, parse
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import one_line

COMMENT = re.compile(r"(?:^|(?<=\s))#")
"""Where a comment of YAML may begin."""
MAX_COMMENTS = 10
"""Lines in which one is looked for, each of which takes as long as reading the text."""


class Change(NamedTuple):
    """A dotted key and its new value."""

    key: str
    value: Any
    is_list: bool = False
    """Whether `value` is a list of several values that were separated by commas."""
    text: str = ""
    """The argument as it was typed."""


def read_changes(overrides: Sequence[str]) -> list[Change]:
    """The changes of a command line, in its order. Raises ConfigError."""
    return [_change(override) for override in overrides]


def _change(override: str) -> Change:
    key, _, text = override.partition("=")
    where = f"command line: {one_line(override)}"
    parts = key.split(".")
    if not key.isprintable() or not all(parts) or len(parts) > MAX_DEPTH:
        message = "expected a key such as train.tokens before the ="
        raise ConfigError(Problem(message, source=where))
    if key == EXTENDS:
        raise ConfigError(Problem("expected in a file only", source=where))
    values = _values(text, where)
    is_list = len(values) > 1
    return Change(key, values if is_list else values[0], is_list, override)


def _values(text: str, where: str) -> list[Any]:
    """The YAML values between the commas outside brackets, braces and quotes.

    No YAML begins with @: such a text is an alias of a version, and is taken as it is.
    """
    if text.startswith("@"):
        return [text]
    values = _separated(text, where) or [parse(text, source=where)]
    if text.startswith("#") or any(isinstance(value, str) for value in values):
        _refuse_comment(text, where)
    return values


def _separated(text: str, where: str) -> list[Any]:
    """Several values; none if there is one, valid or not."""
    if "," in text:
        with suppress(ConfigError):
            values: list[Any] = parse(f"[{text}\n]", source=where)
            if len(values) > 1:
                return values
    return []


def _refuse_comment(text: str, where: str) -> None:
    """Raise ConfigError for a text of which YAML would leave out a part: from a # on."""
    places = islice(_last_signs(text), MAX_COMMENTS)
    if any(_is_comment(text, start, where) for start in places):
        message = "# begins a comment; expected quotes around the value, as in '\"a #1\"'"
        raise ConfigError(Problem(message, source=where))


def _last_signs(text: str) -> Iterator[int]:
    """The last place of each line where a comment may begin: one from before goes on there."""
    last = None
    for found in COMMENT.finditer(text):
        if last is not None and "\n" in text[last : found.start()]:
            yield last
        last = found.start()
    if last is not None:
        yield last


def _is_comment(text: str, start: int, where: str) -> bool:
    """Whether a value is the same without what begins there; not in quotes, or if it is refused."""
    with suppress(ConfigError):
        return bool(parse(text[:start], source=where) == parse(text, source=where))
    return False
