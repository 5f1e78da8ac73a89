"""Pydantic's errors as problems: the key, what was expected, the nearest valid name."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from dca.errors import FieldError
from pipelines.compat.pydantic import (
    FROM_VALIDATOR,
    INVALID_JSON,
    LITERAL,
    MISSING,
    NO_TEXT,
    NOT_A_SECTION,
    UNKNOWN_KEY,
    cause,
    expectation,
    key_path,
)
from pipelines.config.compose import EXTENDS
from pipelines.config.schema import Schema, choices, field_at, field_keys, is_list
from pipelines.console.errors import Problem
from pipelines.console.text import nearest, quote_value

SPACE = ["search", "space"]
"""The section whose keys are dotted."""
QUOTES = """; expected quotes around it, as in '"..."'"""
"""The end of a message about a value that YAML reads as no text, which may have been written in
another way, such as 007."""


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """The problems of data that is no `model`, one for each error."""
    return [_problem(detail, model) for detail in error.errors(include_url=False)]


def _problem(detail: Mapping[str, Any], model: type[BaseModel]) -> Problem:
    path, kind = key_path(detail), detail["type"]
    key = ".".join(part or '""' for part in path)
    if kind == INVALID_JSON:
        return Problem(f"expected text keys and plain values: {cause(detail)}")
    if kind in UNKNOWN_KEY and "." in path[-1]:
        return _dotted(key, _keys(model))
    given = detail["input"]
    if kind in UNKNOWN_KEY and path[:2] == SPACE and (dots := _dots(path[2:], given, model)):
        return Problem(f"unknown key{dots}", key)
    if kind in UNKNOWN_KEY:
        return Problem("unknown key", key, nearest=_nearest_key(path, _keys(model)))
    if kind == MISSING:
        return Problem("missing", key)
    if kind == FROM_VALIDATOR:
        found = _validator_problem(cause(detail), key)
        dots = _dots(path[-1:], given, model) if path[:1] == SPACE[:1] else ""
        return replace(found, message=found.message + dots)
    message = f"{expectation(detail)}, got {quote_value(given)}"
    if kind == NO_TEXT and isinstance(given, bool | int | float | None):
        return Problem(f"{message}{QUOTES}", key)
    is_list_given = kind in NOT_A_SECTION and isinstance(given, list)
    if is_list_given and (field := _list_field(path, model)):
        return Problem(message, key, nearest=f"{{{field}: {quote_value(given)}}}")
    listed = _choices(path, model) if kind == LITERAL else []
    return Problem(message, key, nearest=nearest(str(given), listed))


def _list_field(path: Sequence[str], model: type[BaseModel]) -> str:
    """The one field of a section that takes a list of any length; empty if there is none."""
    fields = field_at(_keys(model), path).get("properties", {})
    found = [name for name in fields if is_list(_keys(model), fields[name])]
    return found[0] if len(found) == 1 else ""


@cache  # which keys there are does not change, and the schema is ten times the rest's work
def _keys(model: type[BaseModel]) -> Schema:
    return model.model_json_schema()


def _choices(path: Sequence[str], model: type[BaseModel]) -> list[str]:
    """The values that a field lists now: names are registered at any time."""
    schema = model.model_json_schema()
    return [str(choice) for choice in choices(schema, field_at(schema, path))]


def _validator_problem(error: ValueError, key: str) -> Problem:
    """The problem of the section or field `key` that a validator found."""
    if isinstance(error, FieldError):
        field = f"{key}.{error.field}" if key else error.field
        return Problem(error.message, field, nearest=error.nearest)
    return Problem(str(error), key)


def _dotted(key: str, schema: Schema) -> Problem:
    """The problem of a key that is written with dots where a file has sections."""
    known = field_at(schema, key.split("."))
    near = "" if known else nearest(key, field_keys(schema))
    *sections, last = (key if known else near or "model.dim").split(".")
    text = "".join(f"{section}: {{" for section in sections) + f"{last}: ...{'}' * len(sections)}"
    message = f"unknown key: expected sections in place of dots, as in {text}"
    return Problem(message, key, nearest=near)


def _dots(path: Sequence[str], given: Any, model: type[BaseModel]) -> str:
    """The advice where sections are given, from a section at `path` on, and keys with dots are
    expected; empty if they lead to no key."""
    keys, parts = _keys(model), list(path)
    while "properties" in field_at(keys, parts) and isinstance(given, Mapping) and given:
        part, given = next(iter(given.items()))
        parts.append(str(part))
    found = field_at(keys, parts) if len(parts) > 1 else {}
    is_key = found and "properties" not in found
    return f"; expected dots in place of sections, as in {'.'.join(parts)}: ..." if is_key else ""


def _nearest_key(path: Sequence[str], schema: Schema) -> str:
    """The valid sibling closest to an unknown key, else the same name in another section."""
    *parents, leaf = path
    siblings = sorted(field_at(schema, parents).get("properties", {}))
    siblings += [] if parents else [EXTENDS]
    longer = [name for name in siblings if len(leaf) > 2 and name.startswith(leaf)]
    close = difflib.get_close_matches(leaf, siblings, n=1) or longer
    if close:
        return ".".join([*parents, close[0]])
    return next((key for key in field_keys(schema) if key.split(".")[-1] == leaf), "")
