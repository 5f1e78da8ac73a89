"""The keys of an experiment: their JSON schema, and a table of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.comparison.config import ARM_NAME, SPACE_PREFIX
from pipelines.config import schema as config_schema
from pipelines.config.compose import EXTENDS
from pipelines.config.schema import Schema
from pipelines.experiment.config import ARM_KEYS, FIELDS, Experiment
from pipelines.search.space import RUN_KEYS

SECTIONS = {"model": "ModelConfig", "train": "TrainConfig"}
"""Definitions of the sections that arms change."""


def schema() -> dict[str, Any]:
    """The JSON schema of a file, a whole experiment or a part of one, for editors."""
    found = Experiment.model_json_schema()
    del found["required"]  # by a part of an experiment
    definitions = found["$defs"]
    space = definitions["SearchConfig"]["properties"]["space"]
    space["propertyNames"] = {"enum": ARM_KEYS}
    space["additionalProperties"] = _or_null(space["additionalProperties"])
    definitions["Dimension"]["properties"]["when"]["propertyNames"] = {"enum": RUN_KEYS}
    definitions["Arm"] = _arm_schema(space, definitions)
    arms = found["properties"]["arms"]
    arms["propertyNames"] = {"pattern": f"^{ARM_NAME.pattern}$"}
    arms["additionalProperties"] = _or_null({"$ref": "#/$defs/Arm"})
    file = {"type": "string", "minLength": 1}
    extends = {
        "anyOf": [file, {"type": "array", "items": file}],
        "description": "Files to extend, relative to this one: later ones win, and this one last.",
    }
    found["properties"] = {EXTENDS: extends, **found["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _arm_schema(space: Schema, definitions: Schema) -> Schema:
    """An arm's changes, each key dotted or below its sections."""
    nested: dict[str, Any] = {}
    dotted = {key: _field(key.split("."), definitions) for key in ARM_KEYS}
    for key, field in dotted.items():
        *sections, name = key.split(".")
        inside = nested
        for section in sections:
            inside = inside.setdefault(section, _closed({}))["properties"]
        inside[name] = field
    bare = {"type": "object", **{k: space[k] for k in ("propertyNames", "additionalProperties")}}
    searched = {f"{SPACE_PREFIX}{key}": bare["additionalProperties"] for key in ARM_KEYS}
    return _closed({**nested, "search": _closed({"space": bare}), **dotted, **searched})


def _field(path: Sequence[str], definitions: Schema) -> dict[str, str]:
    """The reference to the definition of a field of model or train."""
    section, *parents, name = path
    place = f"#/$defs/{SECTIONS[section]}"
    for parent in parents:
        place = definitions[place.rpartition("/")[2]]["properties"][parent]["$ref"]
    return {"$ref": f"{place}/properties/{name}"}


def _closed(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "additionalProperties": False}


def reference() -> str:
    """The table of every key with its default and meaning, as in docs/configuration.md."""
    return config_schema.reference(Experiment.model_json_schema(), FIELDS)
