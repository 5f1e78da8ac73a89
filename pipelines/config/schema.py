"""The reference table of a configuration, from the types, defaults and docstrings."""

import json
from collections.abc import Iterator, Mapping
from typing import Any


def reference(schema: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """A Markdown table of every key with its default and meaning.

    `schema` is the JSON schema of the whole, `defaults` the value of each dotted key.
    """
    header = ["| key | default | meaning |", "|---|---|---|"]
    return "\n".join([*header, *_rows(schema, schema["$defs"], defaults)])


def _rows(
    schema: Mapping[str, Any],
    defs: Mapping[str, Any],
    defaults: Mapping[str, Any],
    prefix: str = "",
) -> Iterator[str]:
    for name, field in schema["properties"].items():
        key = f"{prefix}{name}"
        section = defs.get(field.get("$ref", "").rpartition("/")[2])
        if section is not None:
            yield from _rows(section, defs, defaults, f"{key}.")
        else:
            default = json.dumps(defaults[key]) if "default" in field else "required"
            choices = field.get("enum", [])
            values = f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
            meaning = " ".join(field["description"].split())
            yield f"| `{key}` | `{default}` | {meaning}{values} |"
