"""Plain data to a typed section, or all of its problems at once.

Used by the sections themselves and by pipelines/experiment.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo

from pipelines.config.compose import Layer, source_of
from pipelines.config.problems import QUOTES, problems_of
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import first_line, quote_value

M = TypeVar("M", bound=BaseModel)

MAX_NAME_BYTES = 200
"""Of a name that becomes part of the names of files, which have at most 255 bytes."""


def _letters(text: str) -> str:
    """A text without the marks at letters, such as the vowels of Hindi and Thai, or accents apart:
    Python's patterns do not count them as part of a word, pydantic's do."""
    return "".join(char for char in text if not unicodedata.category(char).startswith("M"))


def worded(pattern: str, expected: str) -> tuple[FieldInfo, BeforeValidator]:
    """A name's pattern, for editors, and what it demands in words, for people."""

    def check(value: Any) -> Any:
        is_number = isinstance(value, int | float)  # as in `experiment: 2024`
        if is_number or (isinstance(value, str) and not re.fullmatch(pattern, _letters(value))):
            end = QUOTES if is_number else ""
            raise ValueError(f"expected {expected}, got {quote_value(value)}{end}")
        if (
            isinstance(value, str)
            and (size := len(value.encode(errors="replace"))) > MAX_NAME_BYTES
        ):
            raise ValueError(f"expected at most {MAX_NAME_BYTES} bytes, got {size}")
        return value

    return Field(pattern=f"^{pattern}$"), BeforeValidator(check)


def validate(
    model: type[M],
    data: Mapping[str, Any],
    *,
    source: str = "",
    layers: Sequence[Layer] = (),
    check: Callable[[M], Iterable[Problem]] = lambda _: (),
    explain: bool = True,
) -> M:
    """A section of the type `model` from plain data. Raises ConfigError with every problem.

    Args:
        model: The section's type.
        data: Its keys and values, as read from YAML.
        source: Of a problem whose key is in none of the layers.
        layers: The files and the command line that `data` is made of: the source of a problem is
            the last one with its key.
        check: Finds the problems of a section whose fields are valid one by one.
        explain: Whether the error has the problems; they take most of the time.

    """
    try:
        text = json.dumps(data)
    except (TypeError, RecursionError) as error:
        message = f"expected text keys and plain values: {first_line(error)}"
        raise ConfigError(Problem(message, source=source)) from None
    except ValueError:  # its text is for programmers
        message = "expected text keys and plain values, none inside itself, no huge numbers"
        raise ConfigError(Problem(message, source=source)) from None
    try:
        section = model.model_validate_json(text, strict=True)
    except ValidationError as error:
        if not explain:
            raise ConfigError from None
        problems = problems_of(error, model)
    else:
        problems = list(check(section))
        if not problems:
            return section
    find = source_of(layers, default=source)
    raise ConfigError(*(replace(p, source=p.source or find(p.key)) for p in problems))
