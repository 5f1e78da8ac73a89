"""Results of stages: frozen dataclasses, stored as JSON, and looked up by their type.

Used by the engine, which stores them, and by the stages and commands, which read them.
"""

import hashlib
import json
from collections.abc import Mapping
from types import UnionType
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

R = TypeVar("R")
Value = str | int
"""In a dimension of a stage with several instances."""
Values = tuple[Value, ...]


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


def from_json(kind: type[R] | UnionType, text: str) -> R | None:
    """A result of a type, or of one of several, from its JSON text; None if it is of none."""
    try:
        return TypeAdapter(cast("type[R]", kind)).validate_json(text, strict=True)
    except ValidationError:
        return None


def json_digest(value: Any) -> str:
    """32 hex digits of the sha256 of JSON data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def label(stage: str, values: Values) -> str:
    """The name of an instance of a stage, as in `fit[dca-2, 3]`; the stage's without values."""
    return f"{stage}[{', '.join(map(str, values))}]" if values else stage


class StageResults:
    """Results of some stages: `results[Fitted]` is the one of that type."""

    def __init__(
        self,
        by_stage: Mapping[str, object],
        instances: Mapping[str, Mapping[Values, object]] | None = None,
    ) -> None:
        """The results by the names of their stages, or of each `stage[values]` by its values."""
        self._found: dict[str, Mapping[Values, object]] = dict(instances or {})
        self._found |= {name: {(): result} for name, result in by_stage.items()}

    def __getitem__(self, kind: type[R]) -> R:
        """The result of a type. Raises LookupError unless there is exactly one."""
        found = self.all(kind)
        if len(found) != 1:
            raise LookupError(f"{len(found)} results of type {kind.__name__}, expected one")
        return next(iter(found.values()))

    def get(self, kind: type[R]) -> R | None:
        """The only result of a type; None if there is none, or one of each of several instances."""
        found = list(self.all(kind).values())
        return found[0] if len(found) == 1 else None

    def all(self, kind: type[R]) -> dict[Values, R]:
        """The results of a type, of all instances of a stage, by their values.

        The values are those in the dimensions that the reader does not have itself. Raises
        LookupError if two stages have results of this type.
        """
        stages = [
            {values: result for values, result in found.items() if isinstance(result, kind)}
            for found in self._found.values()
        ]
        stages = [found for found in stages if found]
        if len(stages) > 1:
            raise LookupError(
                f"{len(stages)} stages have results of type {kind.__name__}, expected one"
            )
        return stages[0] if stages else {}

    def at(self, values: Values) -> "StageResults":
        """These results with one instance of each stage: the one whose values come first here."""
        one = {
            stage: result
            for stage, found in self._found.items()
            for own, result in found.items()
            if own == values[: len(own)]
        }
        return StageResults(one)

    def to_json(self) -> dict[str, Any]:
        """All of them as JSON data, by stage or instance."""
        return {
            label(stage, values): to_json(result)
            for stage, found in self._found.items()
            for values, result in found.items()
        }
