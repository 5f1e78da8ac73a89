"""YAML 1.2 text to plain values and back: text, numbers, true, false, null, lists and mappings.

Used wherever an experiment or a part of one is read or printed. Any text, however odd, is read or
refused within seconds.
"""

import io
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pipelines.compat.ruamel import (
    TAG,
    UNREADABLE,
    PlainConstructor,
    PlainRepresenter,
    TooDeepError,
    make_dumper,
    make_loader,
    refusal,
)
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import quote_value

MAX_CHARACTERS = 32_768
"""Characters of a text, and values in it where every alias is written out; a long experiment has
a tenth of this, a corpus or a checkpoint given by mistake has more."""
MAX_DEPTH = 50
"""Levels of lists and mappings inside one another."""
PLAIN_WORD = re.compile(r"\w[\w./-]*", re.ASCII)
"""Text that is written as it is, unless it would read as a number or the like."""
KEYS_BEFORE = re.compile(r"\s*(- |{?\s*[\w.]+:\s+)*")
"""What may precede a value on its line."""
RESERVED = tuple("*&!%@`|>[{,")
"""Characters with which no text begins without quotes: they mean something in YAML."""
MEANT_AS_TEXT = re.compile(
    "alias|alphabetic or numeric|<document start>|<block end>|chomping|node content|got the tag|"
    "cannot start any token|behind the anchor"
)
"""How such a text is refused."""
FOLLOWED = re.compile(r"but found \(?'<")
"""How a value is refused that ends at the mark, with more behind it."""
EXPECTED = {"int": f"an integer of at most {sys.get_int_max_str_digits():,} digits"}
"""What a value of one of YAML's types should be, where more can be wrong with it than its type."""
MAX_INLINE_KEYS = 3
"""Keys of a mapping that is written on one line."""


def parse(text: str, *, source: str) -> Any:
    """The value of a YAML text. Raises ConfigError naming the source and, if it has many, the line.

    Duplicate keys, keys that are no scalars, other types, more than one document are errors.
    """
    if len(text) > MAX_CHARACTERS:
        message = f"expected at most {MAX_CHARACTERS:,} characters of YAML"
        raise ConfigError(Problem(message, source=source))
    try:
        return make_loader(_Constructor, max_depth=MAX_DEPTH).load(text)
    except TooDeepError as error:
        where, problem = error.problem_mark, f"expected at most {MAX_DEPTH} levels"
    except MarkedYAMLError as error:
        where, problem = error.problem_mark, error.problem or str(error)
        if problem.startswith("but "):  # the end of a sentence
            problem = f"{error.context} {problem}"
    except YAMLError as error:
        where, problem = None, str(error)
    except UNREADABLE:  # such as "\UFFFFFFFF" and %YAML 1.3
        where, problem = None, "no such character or version"
    line = f":{where.line + 1}" if where and "\n" in text else ""
    message = f"not valid YAML: {problem.splitlines()[0]}"
    if where and MEANT_AS_TEXT.search(problem) and (begin := _reserved(text, where, problem)):
        message += f"; expected a text that begins with {begin} in quotes, as in \"'{begin}...'\""
    raise ConfigError(Problem(message, source=f"{source}{line}"))


def _reserved(text: str, where: Any, problem: str) -> str:
    """The character with which a text begins that is refused at this mark, if it means something in
    YAML: that at the mark, else the first of the value; empty of another one, and behind a bracket
    too many."""
    line = [*text.splitlines(), ""][where.line]
    found = line[where.column : where.column + 1]
    if found in ("]", "}"):
        return ""
    if found in RESERVED and not FOLLOWED.search(problem):
        return found
    value = KEYS_BEFORE.sub("", line, count=1)
    return value[0] if value.startswith(RESERVED) else ""


def dump(data: Mapping[str, Any]) -> str:
    """A YAML text of plain values, in their order, that `parse` reads as the same values."""
    text = io.StringIO()
    make_dumper(_Representer, width=MAX_CHARACTERS).dump(data, text)
    return text.getvalue()


def flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and leaf values of nested mappings; an empty mapping is a leaf."""
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class _Constructor(PlainConstructor):
    """Makes the values of a document that is small and could be written as JSON."""

    def check_document(self, node: Node) -> None:
        """Refuse a document that would take years: ten aliases of ten aliases of ten aliases..."""
        if _count_values(node, {}) > MAX_CHARACTERS:
            raise refusal(f"expected at most {MAX_CHARACTERS:,} values, aliases written out", node)

    def construct_value(self, node: Node, tag: str | None) -> Any:
        """Refuse what JSON cannot hold: `!!int x`, half a character, an int of 5,000 digits."""
        try:
            value = super().construct_value(node, tag)
            str(value).encode("utf-16", "surrogatepass").decode("utf-16")
        except (ValueError, LookupError):
            kind = str(node.tag).removeprefix(TAG)
            expected = EXPECTED.get(kind, f"a valid {kind}")
            message = f"expected {expected}, got {quote_value(node.value)}"
            raise refusal(message, node) from None
        return value


class _Representer(PlainRepresenter):
    """Writes innermost lists, and short innermost mappings, on one line."""

    def is_inline(self, mapping: Mapping[str, Any]) -> bool:
        """Give each pair of a long mapping a line of its own."""
        return len(mapping) <= MAX_INLINE_KEYS

    def is_quoted(self, text: str) -> bool:
        """Quote all text but plain words: ruamel.yaml leaves `? a` bare and loses a U+0085."""
        return not PLAIN_WORD.fullmatch(text)


def _count_values(node: Node, counts: dict[Node, int]) -> int:
    """Values of a node where every alias is written out; `counts` are those found so far.

    Raises ConstructorError for a key that is no scalar and for a value inside itself.
    """
    if node not in counts:
        counts[node] = 0
        children = node.value if isinstance(node, SequenceNode) else []
        if isinstance(node, MappingNode):
            children = [child for pair in node.value for child in pair]
            keys = [key for key, _ in node.value if not isinstance(key, ScalarNode)]
            if keys:
                raise refusal("expected text keys", keys[0])
        if isinstance(node, ScalarNode) and node.anchor and not node.value and not node.style:
            raise refusal("expected a value behind the anchor", node)
        counts[node] = 1 + sum(_count_values(child, counts) for child in children)
    if not counts[node]:  # not finished: it is an alias inside what it names
        raise refusal("expected text keys and plain values, got a value inside itself", node)
    return counts[node]
