"""The base class of every section of a configuration: typed, frozen and strict.

Used by the config modules of all packages and by pipelines/experiment.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field

from pipelines.config.validation import validate

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of a configuration: no unknown key, no conversion of types, no change afterwards.

    Every component that reads options defines its section in its own package. Its validators raise
    dca.errors.FieldError, which names the field.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )
    dotted: ClassVar[tuple[str, ...]] = ()
    """Mappings whose own keys are dotted, such as `search.space`."""

    def get(self, key: str) -> Any:
        """The value of a dotted key."""
        value: Any = self
        for part in key.split("."):
            value = getattr(value, part)
        return value

    def replace(self, values: Mapping[str, Any], *, explain: bool = True) -> Self:
        """The same with some dotted keys changed. Raises ConfigError, an empty one unless it is to
        `explain` the problems, which takes ten times as long."""
        data = self.model_dump(mode="json")
        for key, value in values.items():
            set_key(data, key, value, dotted=self.dotted)
        return validate(type(self), data, explain=explain)


def set_key(data: dict[str, Any], key: str, value: Any, *, dotted: Collection[str] = ()) -> None:
    """Set a dotted key in plain data, adding the sections above it.

    None removes a key from a mapping whose own keys are `dotted`.
    """
    mapping = next((name for name in dotted if key.startswith(f"{name}.")), None)
    if mapping:
        *parents, leaf = (*mapping.split("."), key.removeprefix(f"{mapping}."))
    else:
        *parents, leaf = key.split(".")
    for parent in parents:
        below = data.get(parent)
        data[parent] = below = below if isinstance(below, dict) else {}
        data = below
    if mapping and value is None and leaf in data:
        del data[leaf]
    else:
        data[leaf] = value


def get_key(data: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The value of a dotted key in plain data; the default where there is none."""
    value: Any = data
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value
