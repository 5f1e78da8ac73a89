"""The code that can change a result's numbers: found from imports, hashed as syntax trees.

Used for the keys of cached stages. A comment, a docstring or a module that only shows, stores or
orders results changes no key; a constant of the optimizer changes the key of every training stage.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from pipelines.console.errors import PipelineError
from pipelines.console.text import reason_of
from pipelines.storage.project import ROOT

PROJECT = ("dca", "pipelines")
EXCLUDED = {
    "pipelines.cluster.capacity": "counts the workers that fit the nodes",
    "pipelines.cluster.connection": "starts Ray, or connects to it",
    "pipelines.cluster.jobs": "decides when each training runs",
    "pipelines.cluster.mailbox": "passes rows and messages between processes",
    "pipelines.search.jobs_progress": "shows how trainings go",
    "pipelines.cluster.local": "ends what is left of a cluster, and loads trials early",
    "pipelines.cluster.trial_events": "passes on what trainings report",
    "pipelines.compat.mlflow": "names what is in the tracking store",
    "pipelines.compat.mlflow_artifacts": "reads files, whose digests are checked",
    "pipelines.compat.mlflow_errors": "names errors of the tracking store",
    "pipelines.compat.mlflow_server": "asks a tracking server who it is",
    "pipelines.compat.pyarrow": "names errors of file systems",
    "pipelines.compat.pydantic": "names errors of values",
    "pipelines.compat.ray_variables": "refuses variables of the environment",
    "pipelines.compat.ruamel": "names parts of a parser of values",
    "pipelines.config.compose": "reads values, which are in the key themselves",
    "pipelines.config.overrides": "reads values, which are in the key themselves",
    "pipelines.config.problems": "words problems of values",
    "pipelines.config.schema": "describes values for editors",
    "pipelines.config.validation": "refuses values, and changes none",
    "pipelines.config.yaml_text": "reads and writes values, which are in the key themselves",
    "pipelines.console": "shows what happens",
    "pipelines.engine": "orders stages and finds results",
    "pipelines.experiment": "assembles sections, whose modules and values are in the key",
    "pipelines.search.progress": "shows a search",
    "pipelines.search.recorder": "writes what trials report",
    "pipelines.stages.study.replicates": "trains with the loop, and records what it reports",
    "pipelines.storage": "keeps files, whose digests are checked",
    "pipelines.tracking": "records what was found",
    "pipelines.training.memory": "estimates memory; by it batches are cut on a GPU, not changed",
}
"""Modules and packages that imports are not followed into, each with the reason."""
PACKAGE = "__init__"
"""Last part of the name of a package that is imported for a module in it: what that executes."""
BLOCKS = ("body", "orelse", "finalbody")
KERNEL_SUFFIX = ".cpp"
_CPP = re.compile(r'"(?:\\.|[^"\\])*"|(?://[^\n]*|/\*.*?\*/|\s)+', re.S)


def code_digest(modules: Iterable[str]) -> str:
    """32 hex digits of the code of some modules and of all that they import, but the excluded.

    Raises ModuleNotFoundError for a module that is not in the project, PipelineError for one that
    cannot be read, as while it is edited.
    """
    return digest_without_imports(imported_modules(modules))


def digest_without_imports(modules: Iterable[str]) -> str:
    """The same of some modules without what they import."""
    parts = [(name, part) for name in sorted(modules) for part in _normalised(name)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


class CodeDigests(dict[tuple[str, ...], str]):
    """The digest of the code of some modules, computed once for as long as the object lives."""

    def __missing__(self, modules: tuple[str, ...]) -> str:
        self[modules] = code_digest(modules)
        return self[modules]


def read_sources() -> dict[str, bytes]:
    """The sources of the project as they are now, by their paths in it, as in dca/mix.py.

    What an editor keeps beside them, such as its lock `.#mix.py`, is none.
    """
    files = [path for name in PROJECT for path in (ROOT / name).rglob("*") if _is_source(path)]
    return {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in sorted(files)}


def _is_source(path: Path) -> bool:
    names = [*path.relative_to(ROOT).parts[:-1], path.stem]
    is_module = all(name.isidentifier() for name in names)
    return is_module and path.suffix in (".py", KERNEL_SUFFIX) and path.is_file()


def changed_module(modules: Iterable[str], sources: Mapping[str, bytes]) -> str | None:
    """The first source of some modules, or of what they import, whose code is not that of
    `sources`, which were read before; None if all are."""
    for name in sorted(imported_modules(modules)):
        file = path_of(name).relative_to(ROOT)
        files = file.as_posix(), file.with_suffix(KERNEL_SUFFIX).as_posix()
        before = [sources.get(one, b"").decode() for one in files]
        if [*_normalised(name)] != [*_normalised_texts(name, *before)]:
            return files[0]
    return None


def require_same_code(modules: Iterable[str], sources: Mapping[str, bytes]) -> None:
    """Raise PipelineError if code of these modules, or that they import, is not that of `sources`.

    What this process has imported is of before an edit, what a new one imports is not.
    """
    if file := changed_module(modules, sources):
        raise PipelineError(
            f"{file} was edited since this command began, before this training did: run the same "
            "command again; with the file as it was, the results so far are reused"
        )


def imported_modules(modules: Iterable[str]) -> set[str]:
    """These modules of the project and what they import, directly or not, but the excluded.

    The packages around a module are `NAME.__init__` if nothing names them themselves: importing
    the module executes their statements, but none of their functions.
    """
    left = list(modules)
    found, seen = set[str](), set(left)
    while left:
        name = left.pop()
        found.add(name)
        new = _imports(name) - seen
        seen |= new
        left += [other for other in new if not is_excluded(other) and _exists(other)]
    return found


def is_excluded(module: str) -> bool:
    """Whether a module cannot change numbers."""
    return any(f"{module}.".startswith(f"{name}.") for name in EXCLUDED)


def path_of(module: str) -> Path:
    """The source of a module of the project. Raises ModuleNotFoundError."""
    place = f"{ROOT}/{module.replace('.', '/')}"
    for end in (".py", "/__init__.py"):
        if (path := Path(place + end)).is_file():
            return path
    raise ModuleNotFoundError(f"{module}: a result depends on it, but it is not in {ROOT}")


def _imports(module: str) -> set[str]:
    """What may be modules of the project that a module imports, and the packages around it."""
    parts = module.removesuffix(f".{PACKAGE}").split(".")
    around = {".".join([*parts[:count], PACKAGE]) for count in range(1, len(parts))}
    return around | _parse(module, _text(path_of(module)))[0]


def _exists(module: str) -> bool:
    try:
        path_of(module)
    except ModuleNotFoundError:
        return False
    return True


def _normalised(module: str) -> Iterator[str]:
    """A source without what cannot change numbers, and its kernel in C++ if it has one."""
    path = path_of(module)
    kernel = path.with_suffix(KERNEL_SUFFIX)
    return _normalised_texts(module, _text(path), _text(kernel) if kernel.is_file() else "")


def _normalised_texts(module: str, source: str, kernel: str) -> Iterator[str]:
    yield _parse(module, source)[1]
    if kernel:
        yield _without_comments(kernel)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        message = f"{path}: a result depends on it, but it cannot be read: {reason_of(error)}"
        raise PipelineError(message) from None


def _parse(module: str, source: str) -> tuple[frozenset[str], str]:
    try:
        return _parsed(source, whole=not module.endswith(f".{PACKAGE}"))
    except SyntaxError as error:
        message = f"{path_of(module)}:{error.lineno}: a result depends on it, but it is no Python"
        raise PipelineError(f"{message}: {error.msg}") from None


@cache  # the stages of a plan share most of their sources
def _parsed(text: str, *, whole: bool) -> tuple[frozenset[str], str]:
    """The names of the project that a source may import, and a digest of its syntax tree without
    docstrings.

    With `whole` false neither counts its functions, nor what only type checkers read.
    """
    tree = ast.parse(text)
    if not whole:
        tree.body = [node for node in tree.body if not _is_unused(node)]
    names: set[str] = set()
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        for block in (getattr(node, name, None) for name in BLOCKS):
            if isinstance(block, list):
                block[:] = [one for one in block if not _is_docstring(one)]
        left += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)  # importlib.import_module("dca.fused.mix_triton")
    own = frozenset(name for name in names if name.split(".")[0] in PROJECT)
    return own, hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_unused(node: ast.stmt) -> bool:
    """A function, or `if TYPE_CHECKING`."""
    typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    return typing or isinstance(node, ast.FunctionDef)


def _is_docstring(node: ast.stmt) -> bool:
    """A docstring, of whatever it may be."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


@cache
def _without_comments(kernel: str) -> str:
    return _CPP.sub(lambda found: found[0] if found[0].startswith('"') else " ", kernel).strip()
