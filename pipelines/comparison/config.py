"""The configuration of a study: its arms, the seeds of its replicates, and the section `compare`.

Assembled into an experiment in pipelines/experiment, which applies the changes of an arm.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag

from dca.errors import FieldError
from pipelines.compat.pydantic import UNION_TAGS
from pipelines.config.section import Section
from pipelines.console.errors import Problem
from pipelines.console.text import nearest, quote_value

SPACE_PREFIX = "search.space."
MAX_ARMS, MAX_SEEDS, MAX_SEED = 64, 256, 2**31
"""Arms of a study, replicates of an arm, and what a seed is less than."""
TUNING_SEED = 1_000_000
"""Added to `seed` for the searches of a study with arms: the seed of no replicate."""
PROBE_ROUNDS = 9
"""Turns in which a study's probe times the steps of two trainings: with so many the interval of the
median leaves out the fastest and the slowest ratio."""
ARM_NAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9_.: -]{0,58}[a-zA-Z0-9_.:-])?")
"""The engine's names of instances, see pipelines/engine/instances.py, which tests compare."""
ARM_KEY = re.compile(r"arms\.(.+?)\.((?:model|train|search)(?:\..+)?)")
"""A dotted key of the command line: the name of an arm may have dots too."""


def flat_changes(changes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys and values of an arm, which are given so or as nested sections.

    A dimension of the space is one value.
    """
    for key, value in changes.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and not name.startswith(SPACE_PREFIX):
            yield from flat_changes(value, f"{name}.")
        else:
            yield name, value


def _flat_arms(arms: Any) -> Any:
    """Arms with dotted keys. Raises FieldError for what is no changes, or has no valid name."""
    if not isinstance(arms, Mapping):
        return arms
    for name, changes in arms.items():
        if not ARM_NAME.fullmatch(str(name)):
            message = (
                "expected a name of 1 to 60 letters a to z, digits, spaces and _-.: with a "
                "letter or digit first and no space last"
            )
            raise FieldError(str(name), message)
        if not isinstance(changes, Mapping):
            message = "expected changes such as {model.residual: dca}, or {} for none"
            if changes is not None:
                raise FieldError(str(name), message)
            others = [str(other) for other in arms if other != name]
            message = f"{message}; there is no such arm to leave out"
            raise FieldError(str(name), message, nearest(str(name), others))
    return {name: _once(str(name), changes) for name, changes in arms.items()}


def _once(arm: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted keys of an arm. Raises FieldError for one that is given twice, in both forms."""
    found: dict[str, Any] = {}
    for key, value in flat_changes(changes):
        if key in found:
            message = f"given twice, {quote_value(found[key])} and {quote_value(value)}"
            raise FieldError(f"{arm}.{key}", f"{message}; expected once")
        found[key] = value
    return found


def _arm_name(value: Any) -> Any:
    """The name of an arm that is a number, as it is read where it is a key."""
    return json.dumps(value) if isinstance(value, int | float) else value


ArmName = Annotated[str, BeforeValidator(_arm_name)]
Arms = Annotated[dict[str, dict[str, Any]], BeforeValidator(_flat_arms), Field(max_length=MAX_ARMS)]
"""The changes of each arm, by dotted key."""
Seed = Annotated[int, Field(ge=0, lt=MAX_SEED)]
Seeds = (
    Annotated[
        Annotated[int, Field(ge=1, le=MAX_SEEDS), Tag(UNION_TAGS[0])]
        | Annotated[list[Seed], Field(min_length=1, max_length=MAX_SEEDS), Tag(UNION_TAGS[1])],
        Discriminator(lambda value: UNION_TAGS[isinstance(value, list | tuple)]),
    ]
    | None
)
"""A number of replicates, or the seed of each."""


def merge_arms(layers: Sequence[Any]) -> Any:
    """The arms of several files by name and key, later ones over earlier ones; null removes an arm.

    What is no arms is returned as it is, for its type to be refused.
    """
    merged: dict[str, Any] = {}
    for arms in layers:
        if not isinstance(arms, Mapping):
            return arms
        for given, changes in arms.items():
            name = given if isinstance(given, str) else json.dumps(given)  # such as 64
            old = merged.get(name)
            if changes is None and old is not None:
                del merged[name]
            elif isinstance(changes, Mapping) and isinstance(old, Mapping):
                merged[name] = {**dict(flat_changes(old)), **dict(flat_changes(changes))}
            else:
                merged[name] = changes
    return merged


def change_problems(
    changes: Mapping[str, Any], keys: Collection[str], *, fixed: Collection[str]
) -> Iterator[Problem]:
    """What is wrong with the changes of an arm, whatever their values are.

    Args:
        changes: by dotted key.
        keys: those of which an arm may have values.
        fixed: those of model and train in which the arms must agree.

    """
    for key in changes:
        searched = key.removeprefix(SPACE_PREFIX)
        if key in fixed:
            yield Problem("expected once, for all arms: they would not be comparable", key)
        elif key == searched and key not in keys:
            names = [*keys, *(f"{SPACE_PREFIX}{one}" for one in keys)]
            same_name = (name for name in keys if name.partition(".")[2] == key)
            message = "expected a key of model, train or search.space"
            near = next(same_name, nearest(key, names))
            yield Problem(message, key, nearest=near)
        elif key != searched and searched in changes:
            yield Problem(f"expected one of {searched} and its range", key)


def replicate_seeds(seeds: int | list[int], tuning_seed: int) -> tuple[int, ...]:
    """The seeds themselves, or so many: 0, 1, 2 and on, without that of the tuning."""
    if isinstance(seeds, list):
        return tuple(seeds)
    return tuple(islice((seed for seed in count() if seed != tuning_seed), seeds))


class CompareConfig(Section):
    """The comparison of a study's arms with its baseline."""

    smallest_difference: Annotated[float, Field(ge=1e-6)] = 0.01
    """Bits per byte that matter: the number of seeds that an undecided arm needs is that which
    finds such a difference with a power of 0.8."""
    single_look: bool = False
    """Whether the seeds are not added to after a verdict was shown: the whole level of 0.05 is then
    spent at once, else 0.04 of it at the first look (see docs/concepts.md)."""
