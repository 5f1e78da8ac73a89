"""The sections of the configuration, as the shipped schema has them."""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

SCHEMA = Path(__file__).parents[1] / "experiments" / "schema.json"


def fields(section: type) -> dict[str, Any]:
    """The fields of a section with their defaults, limits and descriptions."""
    found: dict[str, Any] = TypeAdapter(section).json_schema()["properties"]
    return found


def shipped_fields(section: type) -> dict[str, Any]:
    """The same in experiments/schema.json."""
    found: dict[str, Any] = json.loads(SCHEMA.read_text())["$defs"][section.__name__]["properties"]
    return found
