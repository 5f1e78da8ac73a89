"""From pydantic's errors to problems: the key, what was expected, the nearest valid name."""

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from dca.errors import FieldError
from pipelines.compat.pydantic import UNKNOWN_KEY, union_member
from pipelines.config.compose import EXTENDS
from pipelines.console.errors import Problem
from pipelines.console.text import nearest, quote_value


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """The problems of data that is no `model`."""
    schema = model.model_json_schema()
    return [_problem(detail, schema) for detail in error.errors(include_url=False)]


def _problem(detail: Any, schema: dict[str, Any]) -> Problem:
    path = [str(part) for part in detail["loc"] if not union_member(part)]
    key, kind, message = ".".join(part or '""' for part in path), detail["type"], detail["msg"]
    if kind == "json_invalid":
        return Problem(f"expected text keys and plain values: {detail['ctx']['error']}")
    if kind in UNKNOWN_KEY:
        return Problem("unknown key", key, nearest=_nearest_key(path, schema))
    if kind == "missing":
        return Problem("missing", key)
    if kind == "value_error":
        cause = detail["ctx"]["error"]
        if isinstance(cause, FieldError):
            where = ".".join([*path, cause.field])
            return Problem(cause.message, where, nearest=cause.nearest)
        return Problem(str(cause), key)
    given = detail["input"]
    expected = f"{message[0].lower()}{message[1:]}, got {quote_value(given)}"
    choices = _field(schema, path).get("enum", []) if kind == "literal_error" else []
    return Problem(expected, key, nearest=nearest(str(given), map(str, choices)))


def field_keys(schema: Mapping[str, Any], prefix: str = "", at: Any = None) -> list[str]:
    """The dotted keys of a schema's fields, sections included as their fields."""
    keys = []
    for name, field in (at or schema).get("properties", {}).items():
        below = _resolved(schema, field)
        inner = field_keys(schema, f"{prefix}{name}.", below) if "properties" in below else []
        keys += inner or [f"{prefix}{name}"]
    return keys


def _nearest_key(path: list[str], schema: dict[str, Any]) -> str:
    """The valid sibling closest to an unknown key, else the same name in another section."""
    *parents, leaf = path
    prefix = "".join(f"{parent}." for parent in parents)
    keys = field_keys(schema)
    siblings = {key[len(prefix) :].split(".")[0] for key in keys if key.startswith(prefix)}
    siblings |= set() if parents else {EXTENDS}
    longer = [name for name in sorted(siblings) if len(leaf) > 2 and name.startswith(leaf)]
    close = difflib.get_close_matches(leaf, sorted(siblings), n=1) or longer
    names = [f"{prefix}{name}" for name in close]
    names += [key for key in keys if key.split(".")[-1] == leaf]
    return names[0] if names else ""


def _field(schema: dict[str, Any], path: list[str]) -> dict[str, Any]:
    """The schema of the field at a path; empty where there is none."""
    found: dict[str, Any] = schema
    for part in path:
        found = _resolved(schema, found)
        below = found.get("properties", {}).get(part) or found.get("additionalProperties")
        found = below if isinstance(below, dict) else {}
    return _resolved(schema, found)


def _resolved(schema: Mapping[str, Any], field: Mapping[str, Any]) -> dict[str, Any]:
    """What a reference stands for."""
    name = field.get("$ref", "").rpartition("/")[2]
    return dict(schema.get("$defs", {}).get(name, field) if name else field)
