"""Functions that read a JSON schema: its keys, the field at a path, its choices, a reference table.

Used to suggest the nearest valid name in a problem, and for the documentation.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]
"""A JSON schema, or the part of one that describes a field."""


def field_keys(schema: Schema) -> list[str]:
    """The dotted keys of all fields, in the order of declaration, without those of sections."""
    return [key for key, _ in _fields(schema, schema)]


def field_at(schema: Schema, path: Sequence[str]) -> Schema:
    """The schema of the field at a path of keys and list indices; empty where there is none."""
    found = _resolve(schema, schema)
    for part in path:
        below = (_child(option, part) for option in _options(schema, found))
        found = _resolve(schema, next(filter(None, below), {}))
    return found


def choices(schema: Schema, field: Schema) -> list[Any]:
    """The values that a field lists, without null; empty if it accepts other values too."""
    return [value for option in _options(schema, field) for value in _listed(option)]


def is_list(schema: Schema, field: Schema) -> bool:
    """Whether a field takes a list of any length."""
    return any(
        option.get("type") == "array" and "items" in option for option in _options(schema, field)
    )


def types(schema: Schema, field: Schema) -> set[str]:
    """The JSON types of the values that a field takes, such as integer and null."""
    return {str(option.get("type")) for option in _options(schema, field)}


def reference(schema: Schema, defaults: Mapping[str, Any]) -> str:
    """A Markdown table of every key with its default and meaning.

    `schema` is the JSON schema of the whole, `defaults` the value of each dotted key.
    """
    rows = [_row(key, field, defaults) for key, field in _fields(schema, schema)]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def _fields(schema: Schema, section: Schema, prefix: str = "") -> Iterator[tuple[str, Schema]]:
    """Every field below a section by its dotted key, as the section declares it."""
    for name, field in section.get("properties", {}).items():
        below = _resolve(schema, field)
        if "properties" in below:
            yield from _fields(schema, below, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _row(key: str, field: Schema, defaults: Mapping[str, Any]) -> str:
    default = json.dumps(defaults[key]) if "default" in field else "required"
    listed = ", ".join(f"`{choice}`" for choice in field.get("enum", []))
    values = f" One of {listed}." if listed else ""
    return f"| `{key}` | `{default}` | {' '.join(field['description'].split())}{values} |"


def _options(schema: Schema, field: Schema) -> list[Schema]:
    """The alternatives of a field, such as a list of choices or null."""
    alternatives = field.get("anyOf", field.get("oneOf", [field]))
    return [_resolve(schema, alternative) for alternative in alternatives]


def _child(field: Schema, part: str) -> Schema:
    """The field below a key or a list index."""
    mapping = field.get("properties", {}).get(part) or field.get("additionalProperties")
    items = field.get("prefixItems", [])
    item = items[int(part)] if part.isdecimal() and int(part) < len(items) else field.get("items")
    return next((below for below in (mapping, item) if isinstance(below, dict)), {})


def _listed(field: Schema) -> list[Any]:
    return field.get("enum", [field["const"]] if "const" in field else [])


def _resolve(schema: Schema, field: Schema) -> Schema:
    """The definition that a reference names; any other field as it is."""
    name = field.get("$ref", "").rpartition("/")[2]
    found: Schema = schema.get("$defs", {}).get(name, field) if name else field
    return found
