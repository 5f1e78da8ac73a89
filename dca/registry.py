"""Registries of classes by name: residual kinds and architectures, as a configuration names them.

Every file in dca/residuals and dca/architectures is imported with dca; the names under which its
classes are registered are then valid in every configuration.
"""

import difflib
import pkgutil
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, TypeVar

from dca.errors import FieldError

C = TypeVar("C", bound=type)


class Registry:
    """The classes that one field of ModelConfig chooses from: `@registry("name")` adds one."""

    def __init__(self, field: str) -> None:
        self.field = field
        self._classes: dict[str, Any] = {}

    def __call__(self, name: str) -> Callable[[C], C]:
        """Register the decorated class. Raises ValueError for a name that is taken."""

        def add(cls: C) -> C:
            if name in self._classes:
                raise ValueError(f"{self.field}: {name} is registered twice")
            self._classes[name] = cls
            return cls

        return add

    def __getitem__(self, name: str) -> Any:
        """The class of a name. Raises FieldError, with the nearest valid one."""
        if name not in self._classes:
            (near,) = difflib.get_close_matches(str(name), self._classes, n=1) or [""]
            known = ", ".join(self.names)
            raise FieldError(self.field, f"expected one of {known}, got {name!r}", near)
        return self._classes[name]

    @property
    def names(self) -> list[str]:
        """Every registered name, sorted: the order of the files has no meaning."""
        return sorted(self._classes)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        """The schema of a field with this annotation: one of the names, also in the JSON schema."""
        return {"type": "literal", "expected": self.names}


residual = Registry("residual")
"""Registers a block (dca/block.py) under the name of a residual kind, `model.residual`."""
architecture = Registry("architecture")
"""Registers a model (dca/model.py) under a name for `model.architecture`."""


def import_all(package: str, path: Iterable[str]) -> None:
    """Import every module of a package: importing one registers its classes."""
    for module in pkgutil.iter_modules(path):
        import_module(f"{package}.{module.name}")
