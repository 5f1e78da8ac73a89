"""YAML 1.2 text to plain values: text, numbers, true, false, null, lists and mappings.

Any text, however odd, is read or refused within seconds.
"""

import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.constructor import BaseConstructor, ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter

from pipelines.console.errors import ConfigError, Problem

MAX_CHARACTERS = 32_768
"""Characters of a text, and values in it where every alias is written out; a long experiment has
a tenth of this, a corpus or a checkpoint given by mistake has more."""
MAX_DEPTH = 50
"""Levels of lists and mappings inside one another."""
PLAIN_WORD = re.compile(r"\w[\w./-]*", re.ASCII)
"""Text that is written as it is, unless it would read as a number or the like."""
MAX_INLINE_KEYS = 3
"""Keys of a mapping that is written on one line."""

KINDS = {"null", "bool", "int", "float", "str", "seq", "map"}
TEXT = {"timestamp", "value"}
"""What YAML 1.1 called a date and `=`, and YAML 1.2 calls text."""
TAG = "tag:yaml.org,2002:"


def parse(text: str, *, source: str) -> Any:
    """The value of a YAML text. Raises ConfigError naming the source and, if it has many, the line.

    Duplicate keys, keys that are no scalars, other types, more than one document are errors.
    """
    if len(text) > MAX_CHARACTERS:
        message = f"expected at most {MAX_CHARACTERS:,} characters of YAML"
        raise ConfigError(Problem(message, source=source))
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    yaml.max_depth = MAX_DEPTH
    yaml.composer.warn_double_anchors = False  # YAML lets an anchor be defined again
    try:
        return yaml.load(text)
    except MaxDepthExceededError as error:
        where, problem = error.problem_mark, f"expected at most {MAX_DEPTH} levels"
    except MarkedYAMLError as error:
        where, problem = error.problem_mark, error.problem or str(error)
    except YAMLError as error:
        where, problem = None, str(error)
    except (ValueError, LookupError, OverflowError, AssertionError):  # "\UFFFFFFFF", %YAML 1.3
        where, problem = None, "no such character or version"
    line = f":{where.line + 1}" if where and "\n" in text else ""
    message = f"not valid YAML: {problem.splitlines()[0]}"
    raise ConfigError(Problem(message, source=f"{source}{line}"))


def dump(data: Mapping[str, Any]) -> str:
    """A YAML text of plain values, in their order, that `parse` reads as the same values."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = None
    yaml.width = MAX_CHARACTERS
    text = io.StringIO()
    yaml.dump(data, text)
    return text.getvalue()


def flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and leaf values of nested mappings; an empty mapping is a leaf."""
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class _Constructor(SafeConstructor):
    """Makes the values of a tree of nodes."""

    construct_scalar = BaseConstructor.construct_scalar  # without the mapping {=: 1} standing for 1

    def construct_undefined(self, node: Node) -> None:
        """Refuse a type such as !!binary, !!set or !!python/object."""
        raise ConstructorError(
            None, None, f"expected a plain value, got the tag {node.tag}", node.start_mark
        )

    yaml_constructors = {
        **{TAG + kind: getattr(SafeConstructor, f"construct_yaml_{kind}") for kind in KINDS},
        **{TAG + kind: SafeConstructor.construct_yaml_str for kind in TEXT},
        None: construct_undefined,
    }

    def construct_document(self, node: Node) -> Any:
        """Refuse first what would take for ever: ten aliases of ten aliases of ten aliases..."""
        if _written_out(node, {}) > MAX_CHARACTERS:
            problem = f"expected at most {MAX_CHARACTERS:,} values, aliases written out"
            raise ConstructorError(None, None, problem, node.start_mark)
        return super().construct_document(node)

    def construct_non_recursive_object(self, node: Node, tag: str | None = None) -> Any:
        """Refuse what JSON could not say: `!!int x`, half a character, an int of 5,000 digits."""
        try:
            value = super().construct_non_recursive_object(node, tag)
            str(value).encode("utf-16", "surrogatepass").decode("utf-16")
        except (ValueError, LookupError):
            kind, shown = str(node.tag).removeprefix(TAG), json.dumps(node.value)[:60]
            problem = f"expected a valid {kind}, got {shown}"
            raise ConstructorError(None, None, problem, node.start_mark) from None
        return value


class _Representer(SafeRepresenter):
    """Writes innermost lists, and short innermost mappings, on one line."""

    def represent_mapping(self, tag: Any, mapping: Any, flow_style: bool | None = None) -> Any:
        """Keep the order (of pairs: a mapping would be sorted); a long one has a line for each."""
        node = super().represent_mapping(tag, list(mapping.items()), flow_style=flow_style)
        node.flow_style = node.flow_style and len(mapping) <= MAX_INLINE_KEYS
        return node

    def represent_scalar(self, tag: Any, value: Any, style: Any = None, anchor: Any = None) -> Any:
        """Quote all text but plain words: ruamel.yaml leaves `? a` bare and loses a U+0085."""
        if tag == f"{TAG}str" and not PLAIN_WORD.fullmatch(value):
            style = '"'
        return super().represent_scalar(tag, value, style=style, anchor=anchor)

    def ignore_aliases(self, data: Any) -> bool:
        """Write everything out."""
        return True


def _written_out(node: Node, known: dict[Node, int]) -> int:
    """Values of a node where every alias is written out. Raises ConstructorError."""
    if node not in known:
        known[node] = 0
        children = node.value if isinstance(node, SequenceNode) else []
        if isinstance(node, MappingNode):
            children = [child for pair in node.value for child in pair]
            keys = [key for key, _ in node.value if not isinstance(key, ScalarNode)]
            if keys:
                raise ConstructorError(None, None, "expected text keys", keys[0].start_mark)
        known[node] = 1 + sum(_written_out(child, known) for child in children)
    if not known[node]:  # not finished: it is an alias inside what it names
        problem = "expected text keys and plain values, got a value inside itself"
        raise ConstructorError(None, None, problem, node.start_mark)
    return known[node]
