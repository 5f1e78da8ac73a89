"""Instances of stages: the nodes of the DAG, and their order.

A stage has an instance for each combination of values of its dimensions, as a fit has one for each
arm and seed of a study. An instance depends on those instances of other stages that agree with it
in the dimensions that both have.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import product
from typing import Any, Generic

from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import quote_value
from pipelines.engine.results import Value, label
from pipelines.engine.stage import C, Stage

MAX_CHARACTERS = 60
VALUE = re.compile(rf"[a-zA-Z0-9]([a-zA-Z0-9_.: -]{{0,{MAX_CHARACTERS - 2}}}[a-zA-Z0-9_.:-])?")
"""A value as text: part of a tag of MLflow, and of a name for people."""


@dataclass(frozen=True)
class FanOut(Generic[C]):
    """The dimensions over which stages have instances."""

    dimensions: Mapping[str, Sequence[Value]]
    """Their values."""
    configure: Callable[[Mapping[str, Value]], C]
    """The configuration of an instance, from its value in each of its dimensions."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a value that cannot be part of the name of an instance."""
        for name, values in self.dimensions.items():
            for value in values:
                if not VALUE.fullmatch(str(value)):
                    message = (
                        f"expected 1 to {MAX_CHARACTERS} letters a to z, digits, spaces and _-.: "
                        f"with a letter or digit first and no space last, got {quote_value(value)}"
                    )
                    raise ConfigError(Problem(message, name))


@dataclass(frozen=True)
class Node:
    """One instance of a stage."""

    stage: Stage[Any, Any]
    position: tuple[tuple[str, Value], ...] = ()
    """Dimensions and their values; empty for a stage without instances."""

    def __str__(self) -> str:
        """The name for people, as in `fit[dca-2, 3]`."""
        return label(self.stage.name, self.values_beyond(()))

    @property
    def path(self) -> str:
        """The name in the tag of a pipeline's run, as in `fit/dca-2/3`."""
        return "/".join([self.stage.name, *(str(value) for _, value in self.position)])

    def values_beyond(self, dimensions: Collection[str]) -> tuple[Value, ...]:
        """Its values in all dimensions but these."""
        return tuple(value for name, value in self.position if name not in dimensions)

    def values_in(self, dimensions: Iterable[str]) -> tuple[Value, ...]:
        """Its values in these dimensions, all of which it has."""
        own = dict(self.position)
        return tuple(own[name] for name in dimensions)

    def config(self, config: C, fan_out: FanOut[C] | None) -> C:
        """Its configuration: without dimensions that of the pipeline."""
        return fan_out.configure(dict(self.position)) if fan_out and self.position else config


def expand(
    stages: Sequence[Stage[Any, Any]], fan_out: FanOut[Any] | None, until: str | None
) -> dict[Node, list[Node]]:
    """The instances of the stages, each after those it depends on, and these.

    Those of a stage are next to each other. With `until`, only those of that stage and of what it
    depends on.
    """
    by_name = {stage.name: stage for stage in stages}
    nodes = {name: _instances(stage, fan_out) for name, stage in by_name.items()}
    graph: dict[Node, list[Node]] = {node: [] for instances in nodes.values() for node in instances}
    for name, stage in by_name.items():
        for needed in stage.depends_on:
            for node, others in _agreeing(nodes[name], nodes[needed]):
                graph[node] += others
    wanted, todo = set(), [until] if until else list(by_name)
    while todo:
        name = todo.pop()
        wanted.add(name)
        todo.extend(by_name[name].depends_on)
    ordered = list(TopologicalSorter(graph).static_order())
    places = {
        name: place for place, name in enumerate(dict.fromkeys(n.stage.name for n in ordered))
    }
    ordered.sort(key=lambda node: places[node.stage.name])
    return {node: graph[node] for node in ordered if node.stage.name in wanted}


def _agreeing(
    instances: Sequence[Node], others: Sequence[Node]
) -> Iterator[tuple[Node, Sequence[Node]]]:
    """The instances of a stage, each with those of another one that have the same values in the
    dimensions of both. Found by these: a study may have thousands of either."""
    theirs = {name for name, _ in others[0].position} if others else set[str]()
    shared = [name for name, _ in instances[0].position if name in theirs] if instances else []
    by_values: dict[tuple[Value, ...], list[Node]] = {}
    for other in others:
        by_values.setdefault(other.values_in(shared), []).append(other)
    for node in instances:
        yield node, by_values.get(node.values_in(shared), [])


def _instances(stage: Stage[Any, Any], fan_out: FanOut[Any] | None) -> list[Node]:
    values = {k: list(dict.fromkeys(v)) for k, v in fan_out.dimensions.items()} if fan_out else {}
    over = [name for name in stage.over if name in values]
    return [
        Node(stage, tuple(zip(over, chosen, strict=True)))
        for chosen in product(*(values[name] for name in over))
    ]
