"""The code that can change a result's numbers: found from imports, hashed as syntax trees.

Used for the keys of cached stages. A comment, a docstring or a module that only shows, stores or
orders results changes no key; a constant of the optimizer changes the key of every training stage.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipelines.storage.project import ROOT

PROJECT = ("dca", "pipelines")
EXCLUDED = {
    "pipelines.cluster": "places work on machines; the numbers are those of the training loop",
    "pipelines.compat.mlflow": "names what is in the tracking store",
    "pipelines.compat.pydantic": "names errors of values",
    "pipelines.compat.ray": "names settings of the cluster, and its errors",
    "pipelines.compat.ruamel": "names parts of a parser of values",
    "pipelines.config": "reads values, which are in the key themselves",
    "pipelines.console": "shows what happens",
    "pipelines.engine": "orders stages and finds results",
    "pipelines.experiment": "assembles values, which are in the key themselves",
    "pipelines.search.progress": "shows a search",
    "pipelines.search.recorder": "writes what trials report",
    "pipelines.storage": "keeps files, whose digests are checked",
    "pipelines.tracking": "records what was found",
}
"""Modules and packages that imports are not followed into, each with the reason."""
KERNEL_SUFFIX = ".cpp"
_CPP = re.compile(r'"(?:\\.|[^"\\])*"|(?://[^\n]*|/\*.*?\*/|\s)+', re.S)


def code_digest(modules: Iterable[str]) -> str:
    """32 hex digits of the code of some modules and of all that they import, but the excluded.

    Raises ModuleNotFoundError for a module that is not in the project.
    """
    found = sorted(imported_modules(modules))
    parts = [(name, part) for name in found for part in _normalised(path_of(name))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


class CodeDigests(dict[tuple[str, ...], str]):
    """The digest of the code of some modules, computed once for as long as the object lives."""

    def __missing__(self, modules: tuple[str, ...]) -> str:
        self[modules] = code_digest(modules)
        return self[modules]


def imported_modules(modules: Iterable[str]) -> set[str]:
    """These modules of the project and what they import, directly or not, but the excluded."""
    found: set[str] = set()
    left = list(modules)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += [other for other in _imports(path_of(name)) if not is_excluded(other)]
    return found


def is_excluded(module: str) -> bool:
    """Whether a module cannot change numbers."""
    return any(f"{module}.".startswith(f"{name}.") for name in EXCLUDED)


def path_of(module: str) -> Path:
    """The source of a module of the project. Raises ModuleNotFoundError."""
    place = ROOT.joinpath(*module.split("."))
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    raise ModuleNotFoundError(f"{module}: a result depends on it, but it is not in {ROOT}")


def _imports(path: Path) -> Iterator[str]:
    """The project's modules that a source imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)  # importlib.import_module("dca.mix_triton")
    ours = (name for name in names if name.split(".")[0] in PROJECT)
    yield from (name for name in ours if _exists(name))


def _exists(module: str) -> bool:
    try:
        path_of(module)
    except ModuleNotFoundError:
        return False
    return True


def _normalised(path: Path) -> Iterator[str]:
    """A source without what cannot change numbers, and its kernel in C++ if it has one."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        for _, block in ast.iter_fields(node):
            if isinstance(block, list):
                block[:] = [one for one in block if not _is_text(one)]
    yield ast.dump(tree)
    kernel = path.with_suffix(KERNEL_SUFFIX)
    if kernel.is_file():
        yield _CPP.sub(_without_comment, kernel.read_text()).strip()


def _is_text(node: object) -> bool:
    """A docstring, of whatever it may be."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _without_comment(match: re.Match[str]) -> str:
    return match[0] if match[0].startswith('"') else " "
