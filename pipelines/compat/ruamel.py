"""What pipelines/config takes from ruamel.yaml below its documented interface.

ruamel.yaml documents loading and dumping; how values are made of nodes, and nodes of values, it
lets subclasses change without describing it.
"""

from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.constructor import BaseConstructor, ConstructorError, SafeConstructor
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode
from ruamel.yaml.representer import SafeRepresenter

TAG = "tag:yaml.org,2002:"
"""What `!!` stands for in a tag of YAML's own types."""
KINDS = {"null", "bool", "int", "float", "str", "seq", "map"}
"""YAML's plain types, whose constructors SafeConstructor names construct_yaml_KIND."""
YAML_1_1_KINDS = {"timestamp", "value"}
"""What YAML 1.1 called a date and `=`; YAML 1.2 calls both text, ruamel.yaml neither."""
UNREADABLE = (ValueError, LookupError, OverflowError, AssertionError)
"""Errors of Python itself that escape from loading some text that is no YAML."""
MAX_SHOWN = 60
"""Characters of a value in a message."""
TooDeepError = MaxDepthExceededError
"""Raised for text that is nested too deep; exported by the composer's module only."""


def make_loader(constructor: type[SafeConstructor], *, max_depth: int) -> YAML:
    """A loader of plain values with a constructor of ours.

    Deeper nesting than `max_depth` raises TooDeepError. An anchor may be defined again, as YAML
    allows it: the composer would warn.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = constructor
    yaml.max_depth = max_depth
    yaml.composer.warn_double_anchors = False
    return yaml


def make_dumper(representer: type[SafeRepresenter], *, width: int) -> YAML:
    """A writer of plain values with a representer of ours; lines may be `width` long."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = representer
    yaml.default_flow_style = None
    yaml.width = width
    return yaml


def _shown(node: Node) -> str:
    """The text of a value."""
    if isinstance(node, MappingNode):
        return "{" + ", ".join(f"{_shown(k)}: {_shown(v)}" for k, v in node.value) + "}"
    if isinstance(node, SequenceNode):
        return "[" + ", ".join(map(_shown, node.value)) + "]"
    return str(node.value)


def refusal(problem: str, node: Node) -> ConstructorError:
    """The error of a node with a problem: without the two arguments for a second place."""
    return ConstructorError(None, None, problem, node.start_mark)


class PlainConstructor(SafeConstructor):
    """Makes text, numbers, true, false, null, lists and mappings; refuses all other types.

    A subclass gives `check_document` and `construct_value`, which are called from methods whose
    names and arguments ruamel.yaml does not document.
    """

    construct_scalar = BaseConstructor.construct_scalar  # without the mapping {=: 1} standing for 1

    def construct_undefined(self, node: Node) -> None:
        """Refuse a type such as !!binary, !!set or !!python/object."""
        raise refusal(f"expected a plain value, got the tag {node.tag}", node)

    yaml_constructors = {
        **{TAG + kind: getattr(SafeConstructor, f"construct_yaml_{kind}") for kind in KINDS},
        **{TAG + kind: SafeConstructor.construct_yaml_str for kind in YAML_1_1_KINDS},
        None: construct_undefined,
    }

    def construct_document(self, node: Node) -> Any:
        """The value of a whole document."""
        self.check_document(node)
        return super().construct_document(node)

    def check_document(self, node: Node) -> None:
        """Raise ConstructorError for a document of which no values are to be made."""

    def check_mapping_key(
        self, node: Node, key_node: Node, mapping: Any, key: Any, value: Any
    ) -> bool:
        """Whether a key of a mapping is new. Shows both values of one that is not: `value`, of a
        list or a mapping, is empty as yet."""
        if key not in mapping:
            return True
        values = [found for one, found in node.value if one.value == key_node.value]
        shown = " and ".join(_shown(one)[:MAX_SHOWN] for one in values[:2])
        raise refusal(f'found duplicate key "{key}", with the values {shown}', key_node)

    def construct_non_recursive_object(self, node: Node, tag: str | None = None) -> Any:
        """The value of one node."""
        return self.construct_value(node, tag)

    def construct_value(self, node: Node, tag: str | None) -> Any:
        """The value of one node; a list or mapping is filled later."""
        return super().construct_non_recursive_object(node, tag)


class PlainRepresenter(SafeRepresenter):
    """Writes every value out, mappings in their own order.

    A subclass gives `is_inline` and `is_quoted`, which are called from methods whose names and
    arguments ruamel.yaml does not document.
    """

    def is_inline(self, mapping: Mapping[str, Any]) -> bool:
        """Whether a mapping without lists and mappings in it is written on one line."""
        return True

    def is_quoted(self, text: str) -> bool:
        """Whether text is written in double quotes that would otherwise be bare."""
        return False

    def represent_mapping(self, tag: Any, mapping: Any, flow_style: bool | None = None) -> Any:
        """Pass the pairs: SafeRepresenter sorts what has `items`."""
        node = super().represent_mapping(tag, list(mapping.items()), flow_style=flow_style)
        node.flow_style = node.flow_style and self.is_inline(mapping)
        return node

    def represent_scalar(self, tag: Any, value: Any, style: Any = None, anchor: Any = None) -> Any:
        """Give text its quotes, as `style`."""
        if tag == f"{TAG}str" and self.is_quoted(value):
            style = '"'
        return super().represent_scalar(tag, value, style=style, anchor=anchor)

    def ignore_aliases(self, data: Any) -> bool:
        """Give a value that occurs twice no anchor."""
        return True
