"""Results of stages: frozen dataclasses, stored as JSON, and looked up by their type.

Used by the engine, which stores them, and by the stages and commands, which read them.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

R = TypeVar("R")


def to_json(result: object) -> dict[str, Any]:
    """A result as JSON data, the same before it is stored and after it is read.

    A field that has its default is left out. Raises pydantic's ValidationError if a field is not of
    its type.
    """
    adapter: TypeAdapter[Any] = TypeAdapter(type(result))
    text = json.dumps(adapter.dump_python(result, mode="json"))
    same = adapter.validate_json(text, strict=True)  # an integer of a field of floats is a float
    found: dict[str, Any] = adapter.dump_python(same, mode="json", exclude_defaults=True)
    return found


def from_json(kind: type[R], text: str) -> R | None:
    """A result of a type from its JSON text; None if the text is not of this type."""
    try:
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError:
        return None


def json_digest(value: Any) -> str:
    """32 hex digits of the sha256 of JSON data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


class StageResults:
    """Results of some stages: `results[Fitted]` is the one of that type."""

    def __init__(self, by_stage: Mapping[str, object]) -> None:
        """The results by the names of their stages."""
        self._by_stage = dict(by_stage)

    def __getitem__(self, kind: type[R]) -> R:
        """The result of a type. Raises LookupError unless there is exactly one."""
        found = [result for result in self._by_stage.values() if isinstance(result, kind)]
        if len(found) != 1:
            raise LookupError(f"{len(found)} results of type {kind.__name__}, expected one")
        return found[0]

    def to_json(self) -> dict[str, Any]:
        """All of them as JSON data, by stage."""
        return {name: to_json(result) for name, result in self._by_stage.items()}
