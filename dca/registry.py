"""Registries of classes by name: residual kinds and architectures, as a configuration names them.

`@residual("name")` or `@architecture("name")` above a class, in a file of dca/residuals or
dca/architectures, makes the name valid in every configuration. Names are read from the text of
these files: a configuration is checked without importing PyTorch, and a model imports its own kind.
"""

import ast
import difflib
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from dca.errors import FieldError
from dca.options import read_options, unread_fields

C = TypeVar("C", bound=type)


class Registry:
    """The classes that one field of ModelConfig chooses from: `@registry("name")` adds one."""

    def __init__(self, field: str, folder: Path) -> None:
        """For a field, and the package of dca whose files have its classes."""
        self.field = field
        self._folder = folder
        self._classes: dict[str, Any] = {}

    def __call__(self, name: str) -> Callable[[C], C]:
        """Register the decorated class. Raises ValueError for a name that is taken."""

        def add(cls: C) -> C:
            if self._modules.get(name, cls.__module__) != cls.__module__ or name in self._classes:
                raise ValueError(f"{self.field}: {name} is registered twice")
            self._classes[name] = cls
            return cls

        return add

    def __getitem__(self, name: str) -> Any:
        """The class of a name, imported if need be. Raises FieldError, with the nearest name."""
        module = self.module(name)
        if name not in self._classes:
            import_module(module)
        return self._classes[name]

    def module(self, name: str) -> str:
        """The module of a name's class. Raises FieldError, with the nearest valid name."""
        if name in self._classes:
            return str(self._classes[name].__module__)
        if name not in self._modules:
            (near,) = difflib.get_close_matches(str(name), self.names, n=1) or [""]
            known = ", ".join(self.names)
            raise FieldError(self.field, f"expected one of {known}, got {name!r}", near)
        return self._modules[name]

    @cached_property
    def options(self) -> dict[str, Any]:
        """The class of options of each file that has one, by the file's name: sections of
        ModelConfig."""
        files = sorted(self._folder.glob("[a-z]*.py"))
        return {file.stem: cls for file in files if (cls := read_options(file)) is not None}

    def section(self, name: str) -> str:
        """The section of a name's options; empty if its file has none."""
        section = self.module(name).rpartition(".")[2]
        return section if section in self.options else ""

    def unread(self, name: str) -> set[str]:
        """The options, as SECTION.FIELD, that a name's class does not read: those of other files,
        and those that only others of its file read."""
        own = self.section(name)
        return {
            f"{section}.{field}"
            for section, cls in self.options.items()
            for field in unread_fields(cls, name if section == own else None)
        }

    def add_sections(self, cls: C) -> C:
        """Give a class, before it becomes a dataclass, a field for each section, with defaults."""
        for section, options in self.options.items():
            cls.__annotations__[section] = options
            setattr(cls, section, options())
        return cls

    @property
    def names(self) -> list[str]:
        """Every name, sorted: the order of the files has no meaning."""
        return sorted({*self._modules, *self._classes})

    @cached_property
    def _modules(self) -> dict[str, str]:
        """The module of each name that a file of the package registers."""
        found: dict[str, str] = {}
        for path in sorted(self._folder.glob("*.py")):
            for name in self._registered(ast.parse(path.read_text())):
                if name in found:
                    raise ValueError(f"{self.field}: {name} is registered twice")
                found[name] = f"{__package__}.{self._folder.name}.{path.stem}"
        return found

    def _registered(self, tree: ast.Module) -> Iterator[str]:
        """The names in a file's decorators of this registry."""
        for node in tree.body:
            for decorator in node.decorator_list if isinstance(node, ast.ClassDef) else ():
                match decorator:
                    case ast.Call(
                        func=ast.Name(self.field) | ast.Attribute(attr=self.field),
                        args=[ast.Constant(str(name))],
                    ):
                        yield name

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        """The schema of a field with this annotation: one of the names, also in the JSON schema."""
        return {"type": "literal", "expected": self.names}


residual = Registry("residual", Path(__file__).parent / "residuals")
"""Registers a block (dca/block.py) under the name of a residual kind, `model.residual`."""
architecture = Registry("architecture", Path(__file__).parent / "architectures")
"""Registers a model (dca/model.py) under a name for `model.architecture`."""
