"""Options of a residual kind: the class `Options` in its file, a section of ModelConfig.

    from dca.options import Annotated, Literal, Range, options

    @options
    class Options:
        '''Of far and near.'''

        reach: Annotated[int, Range(ge=1)] = 4
        '''How far it reads, in blocks.'''

In a file of dca/residuals that is called far it is `model.far.reach` of a configuration, and
`config.options.reach` to the kinds of that file. The class is read from the text of the file and
executed without the rest of it, because a configuration is checked without PyTorch: it can use the
names of this module only. Fields have defaults; the text below one is its meaning in the reference.
A method `check(self, config)`, if there is one, raises FieldError for options that do not fit the
model. Where not all kinds of the file read an option, its annotation names those that do:
`Annotated[int, ReadBy("near")]`. A method `resolved(self, config)` returns options by name with the
values that are computed with, where others mean exactly the same, such as null.
"""

import ast
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from dca.errors import FieldError

__all__ = ["Annotated", "FieldError", "Literal", "Range", "ReadBy", "options", "read_options"]
C = TypeVar("C", bound=type)
_OPTIONS = "Options"
_UNION = type(Annotated[int, 0] | None)


@dataclass(frozen=True, kw_only=True)
class Range:
    """The finite numbers that a field takes: at least `ge` or more than `gt`, and the like."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            -float("inf") < value < float("inf")
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
        given = [(words[name], getattr(self, name)) for name in words]
        return " and ".join(f"{word} {bound}" for word, bound in given if bound is not None)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """The bounds in a JSON schema."""
        names = {
            "ge": "minimum",
            "gt": "exclusiveMinimum",
            "le": "maximum",
            "lt": "exclusiveMaximum",
        }
        bounds = {names[name]: getattr(self, name) for name in names}
        return {**handler(schema), **{k: v for k, v in bounds.items() if v is not None}}


class ReadBy:
    """The kinds that read a field, of those whose options it is among."""

    def __init__(self, *kinds: str) -> None:
        self.kinds = kinds


@dataclass(frozen=True)
class _Meaning:
    """The text below a field, its description in a JSON schema."""

    text: str

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(schema), "description": self.text}


def options(cls: C) -> C:
    """Mark the class `Options` of a file of dca/residuals: it is the one that was read from it.

    A class of a file elsewhere, such as a test's, is read from its own.
    """
    module = sys.modules[cls.__module__]
    found = read_options(Path(str(module.__file__)))
    assert found is not None
    return typing.cast(C, found)


@lru_cache
def read_options(file: Path) -> Any:
    """The class of a file's options, a frozen dataclass; None if the file has none.

    Its name is that of the file, as in FarOptions. Constructing it raises FieldError for a value
    outside the limits of its field.
    """
    name = "".join(part.capitalize() for part in file.stem.split("_")) + _OPTIONS
    tree = ast.parse(file.read_text())
    node = next(filter(_is_options, tree.body), None)
    if not isinstance(node, ast.ClassDef):
        return None
    node.decorator_list = []
    names: dict[str, Any] = {name: globals()[name] for name in (*__all__, "__name__")}
    exec(compile(ast.Module([node], []), str(file), "exec"), names)
    return _finished(names[_OPTIONS], name, _texts(node))


def _is_options(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef) and node.name == _OPTIONS


def _texts(node: ast.ClassDef) -> dict[str, str]:
    """The text below each field."""
    pairs = zip(node.body, node.body[1:], strict=False)
    return {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in pairs
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def _finished(cls: Any, name: str, texts: Mapping[str, str]) -> type:
    """The class as a dataclass that checks its values, under a name that pickles find."""
    limits = {field: _check_of(annotation) for field, annotation in cls.__annotations__.items()}
    for field, annotation in cls.__annotations__.items():
        cls.__annotations__[field] = Annotated[annotation, _Meaning(texts.get(field, ""))]

    def check(self: Any) -> None:
        for field, problem in limits.items():
            if message := problem(getattr(self, field)):
                raise FieldError(field, message)

    cls.__post_init__ = check
    cls.__pydantic_config__ = {"extra": "forbid", "strict": True}
    cls.__name__ = cls.__qualname__ = name
    return dataclass(frozen=True, kw_only=True)(cls)


def _check_of(annotation: Any) -> Callable[[Any], str]:
    """A function that words what is wrong with a value of an annotated type; empty for nothing."""
    parts = get_args(annotation) if isinstance(annotation, UnionType | _UNION) else (annotation,)
    null = " or null" if type(None) in parts else ""
    ranges = [r for part in parts for r in getattr(part, "__metadata__", ()) if _is_range(r)]
    words = [w for part in parts if get_origin(part) is Literal for w in get_args(part)]

    def problem(value: Any) -> str:
        if null and value is None:
            return ""
        if ranges and not any(value in one for one in ranges):
            return f"expected {ranges[0]}{null}, got {value}"
        if words and value not in words:
            return f"expected one of {', '.join(map(str, words))}{null}, got {value!r}"
        return ""

    return problem


def _is_range(found: object) -> bool:
    return isinstance(found, Range)


@cache
def unread_fields(cls: Any, kind: str | None) -> tuple[str, ...]:
    """The options of a file that one of its kinds does not read; all of them for another's kind."""
    found = []
    for field in fields(cls):
        metadata = getattr(field.type, "__metadata__", ())
        readers = [one.kinds for one in metadata if isinstance(one, ReadBy)]
        if kind is None or any(kind not in kinds for kinds in readers):
            found.append(field.name)
    return tuple(found)


def from_data(cls: Any, data: Mapping[str, Any], section: str) -> Any:
    """Options from plain data. Raises FieldError for an unknown name or a value out of range."""
    known = [field.name for field in fields(cls)]
    if unknown := next((name for name in data if name not in known), None):
        raise FieldError(f"{section}.{unknown}", f"expected one of {', '.join(known)}")
    with in_section(section):
        return cls(**data)


@contextmanager
def in_section(section: str) -> Iterator[None]:
    """Name the section in an error of one of its fields."""
    try:
        yield
    except FieldError as error:
        raise FieldError(f"{section}.{error.field}", error.message, error.nearest) from None


def __getattr__(name: str) -> Any:
    """A class of options by its name: where pickles find it."""
    if not name.endswith(_OPTIONS):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dca.registry import residual

    for cls in residual.options.values():
        if cls.__name__ == name:
            return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
