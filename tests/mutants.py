"""Mutation tests: change one place of the code at a time, and see whether its tests fail.

    python tests/mutants.py [--seed N] [--count N] [--package PATH ...]

A mutant has another operator, constant or condition. The places are drawn from one package after
the other: the n-th mutant of a package depends on the seed alone. Each mutant is tested in a copy
of the checkout with the tests of its package that take seconds, those that execute the changed line
first, until the first failure; then with the tests of other packages that execute the line. One
that no test fails on has survived: a test is missing, or the two programs do the same. The tests
run in a process forked from one with the libraries in memory.
"""

import argparse
import ast
import copy
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from coverage import Coverage

ROOT = Path(__file__).parents[1]
OPERATORS: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Add, ast.Div),
    ast.Div: (ast.Mult, ast.FloorDiv),
    ast.FloorDiv: (ast.Div, ast.Mult),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}
LIBRARIES = (
    *("numpy", "scipy.stats", "pandas", "matplotlib.pyplot", "torch", "torch._dynamo", "pytest"),
    *("ray", "ray.tune", "ray.train", "optuna", "optuna.samplers", "mlflow", "mlflow.pyfunc"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
    *("pydantic", "ruamel.yaml", "rich.console", "jinja2", "hypothesis", "moto.server"),
)
"""What most tests import: a dozen seconds, spent once. Nothing of this project: a mutant of it."""
PROJECT = ("dca", "pipelines", "tests")
_FORKS = multiprocessing.get_context("forkserver")
MARKS = "not (ray or browser or docs or faults or cluster)"
NO_TESTS = 5
"""pytest's exit code if none is selected."""
CHOSEN_ELSEWHERE = ("annotation", "returns", "decorator_list", "bases", "format_spec")
"""Fields whose values are types, or decide how a class is made: no behaviour that a test sees."""
MIN_LIMIT_SECONDS, MAX_SECONDS = 60, 1800
WAIT_FACTOR = 5
"""How much longer tests may wait, as on a busy machine, than compute."""


@dataclass(frozen=True)
class Mutant:
    """One changed place of a module."""

    path: Path
    line: int
    old: str
    new: str
    text: str
    """The whole module with the change."""


def mutants_of(path: Path) -> list[Mutant]:
    """Every mutant of a module, in the order of their places."""
    source = path.read_bytes()
    offsets = [0]
    for line in source.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    found = []
    for node, is_condition in _places(ast.parse(source)):
        start = offsets[node.lineno - 1] + node.col_offset
        end = offsets[node.end_lineno - 1] + node.end_col_offset
        for changed in _replacements(node, is_condition):
            old, new = ast.unparse(node), ast.unparse(changed)
            inserted = f"({new})" if isinstance(changed, ast.expr) else new
            text = (source[:start] + inserted.encode() + source[end:]).decode()
            found.append(Mutant(path, node.lineno, old, new, text))
    return found


def _places(node: ast.AST, is_condition: bool = False) -> Iterator[tuple[Any, bool]]:
    """The nodes of a tree that may be changed, and whether a branch depends on them."""
    if isinstance(node, ast.JoinedStr) or _changes_nothing(node):
        return  # Python 3.11 gives wrong columns inside f-strings
    if isinstance(node, ast.expr | ast.AugAssign):
        yield node, is_condition
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in CHOSEN_ELSEWHERE:
                yield from _places(child, name in ("test", "ifs"))


def _changes_nothing(node: ast.AST) -> bool:
    """Whether it is for tools, as `__all__` and `if TYPE_CHECKING:`, for a start as a script, an
    assertion: `strict=True`, or the size of a buffer: `CHUNK_BYTES`."""
    if isinstance(node, ast.keyword):
        return node.arg == "strict"
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) in ("__all__", "CHUNK_BYTES")
    names = ("TYPE_CHECKING", "__name__ == '__main__'")
    return isinstance(node, ast.If) and ast.unparse(node.test) in names


def _replacements(node: Any, is_condition: bool) -> Iterator[ast.AST]:
    """The same node with another operator, constant or condition."""
    match node:
        case ast.BinOp() | ast.AugAssign() | ast.BoolOp():
            for operator in OPERATORS.get(type(node.op), ()):
                yield _with(node, op=operator())
        case ast.Compare():
            for i, used in enumerate(node.ops):
                for operator in OPERATORS[type(used)]:
                    yield _with(node, ops=[*node.ops[:i], operator(), *node.ops[i + 1 :]])
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int()):
            yield ast.Constant(node.value + 1)
        case ast.Constant(value=float()):
            yield ast.Constant(2 * node.value or 1.0)
        case _ if is_condition:
            yield ast.UnaryOp(ast.Not(), node)


def _with(node: Any, **fields: Any) -> Any:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def packages(root: Path = ROOT) -> dict[str, list[Path]]:
    """The modules of each package by its path; those of pipelines itself are one, too."""
    folders = [root / "dca", *sorted((root / "pipelines").glob("[a-z]*/"))]
    found = {str(f.relative_to(root)): sorted(f.rglob("[a-z]*.py")) for f in folders}
    return found | {"pipelines": sorted((root / "pipelines").glob("[a-z]*.py"))}


def draw(modules: dict[str, list[Path]], seed: int, count: int) -> list[tuple[str, Mutant]]:
    """`count` different mutants with the names of their packages, one package after the other."""
    generators = {name: random.Random(f"{seed} {name}") for name in modules}
    drawn: dict[Mutant, str] = {}
    names = list(modules)
    while len(drawn) < count:
        name = names[len(drawn) % len(names)]
        choices = mutants_of(generators[name].choice(modules[name]))
        if choices and (mutant := generators[name].choice(choices)) not in drawn:
            drawn[mutant] = name
    return [(name, mutant) for mutant, name in drawn.items()]


def find_tests(package: str, root: Path) -> list[str]:
    """The files of tests of a package."""
    folder = root / "tests" / package
    pattern = "test_*.py" if package == "pipelines" else "**/test_*.py"
    return [str(path) for path in sorted(folder.glob(pattern))]


def copy_checkout(to: Path) -> None:
    """Copy what git tracks, and new files that it does not ignore, as a commit of its own."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    author = ("-c", "user.name=mutants", "-c", "user.email=mutants@localhost")
    for command in (("init", "-q"), ("add", "."), (*author, "commit", "-q", "-m", "copy")):
        subprocess.run(["git", *command], cwd=to, check=True)


class Lines:
    """A plugin of pytest that records which tests execute which lines of the project."""

    def __init__(self, root: Path, file: Path) -> None:
        self._sources, self._file = [str(root / "dca"), str(root / "pipelines")], file

    def pytest_sessionstart(self) -> None:
        # here, since it is another process that this object has been made in
        self._coverage = Coverage(data_file=None, config_file=False, source=self._sources)
        self._coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._coverage.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self._coverage.switch_context("")

    def pytest_sessionfinish(self) -> None:
        self._coverage.stop()
        data = self._coverage.get_data()
        tests = {
            f"{path}:{line}": [name for name in names if name]
            for path in data.measured_files()
            for line, names in data.contexts_by_lineno(path).items()
        }
        self._file.write_text(json.dumps({line: names for line, names in tests.items() if names}))


class Order:
    """A plugin of pytest that runs some tests before the others."""

    def __init__(self, first: Collection[str]) -> None:
        self._first = first

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: (item.nodeid not in self._first, _starts_process(item)))


class Only:
    """A plugin of pytest that runs some tests and no others."""

    def __init__(self, chosen: Collection[str]) -> None:
        self._chosen = chosen

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self._chosen), key=_starts_process)


def _starts_process(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in ("process", "server"))


def failure(tests: list[str], root: Path, limit: float, plugin: object) -> str:
    """The end of pytest's output if a test fails, or they compute longer than `limit` seconds."""
    with tempfile.NamedTemporaryFile("r") as output:
        arguments = ["-x", "-m", MARKS, "-p", "no:cacheprovider", *tests]
        task = (arguments, plugin, root, output.name, round(limit))
        process = _FORKS.Process(target=_run_pytest, args=task)
        process.start()
        process.join(WAIT_FACTOR * limit)
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            return f"longer than {WAIT_FACTOR * limit:.0f} seconds"
        if process.exitcode in (0, NO_TESTS):
            return ""
        text = output.read()[-3000:]
        if process.exitcode == 1 and not text:
            raise RuntimeError("pytest did not start")
        return text or f"exit code {process.exitcode}"


def _run_pytest(
    arguments: list[str], plugin: object, root: Path, output: str, cpu_seconds: int
) -> None:
    """Be `python -m pytest` in a checkout, and the leader of a group of processes."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    for descriptor in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), descriptor)
    os.chdir(root)
    sys.path[:] = [str(root), *(path for path in sys.path if Path(path) != ROOT / "tests")]
    for name in [name for name in sys.modules if name.partition(".")[0] in PROJECT]:
        del sys.modules[name]
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    multiprocessing.set_start_method(None, force=True)
    sys.exit(pytest.main(arguments, plugins=[plugin]))


class PackageTests:
    """The tests of a package in a copy of the checkout, which pass there without a mutant."""

    def __init__(self, package: str, root: Path) -> None:
        self._files, self._root = find_tests(package, root), root
        started = time.monotonic()
        with tempfile.NamedTemporaryFile("r") as lines:
            recorder = Lines(root, Path(lines.name))
            if output := failure(self._files, root, MAX_SECONDS, recorder):
                raise SystemExit(f"{output}\n{package}: its tests fail without a mutant")
            self._lines: dict[str, list[str]] = json.loads(lines.read() or "{}")
        self._limit = max(MIN_LIMIT_SECONDS, 3 * (time.monotonic() - started))

    def executing(self, mutant: Mutant) -> set[str]:
        """Those that execute its line; of one executed at an import, any line of its module."""
        module = f"{mutant.path}:"
        found = self._lines.get(f"{module}{mutant.line}") or [
            name for line, names in self._lines.items() if line.startswith(module) for name in names
        ]
        return set(found)

    def failure(self, mutant: Mutant) -> str:
        """How they fail on a mutant, those that execute its line first; empty if it survives."""
        return self._failure(mutant, self._files, Order(self.executing(mutant)))

    def failure_of_executing(self, mutant: Mutant) -> str:
        """The same of those that execute its line, without the others: the tests of a package that
        the mutant does not belong to."""
        chosen = self.executing(mutant)
        files = sorted({name.partition("::")[0] for name in chosen})
        return self._failure(mutant, files, Only(chosen)) if files else ""

    def _failure(self, mutant: Mutant, files: list[str], plugin: object) -> str:
        original = mutant.path.read_text()
        mutant.path.write_text(mutant.text)
        try:
            return failure(files, self._root, self._limit, plugin)
        finally:
            mutant.path.write_text(original)


class PackagesTests(dict[str, PackageTests]):
    """The tests of each package, by its name, measured when they are first needed."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root

    def __missing__(self, package: str) -> PackageTests:
        self[package] = PackageTests(package, self._root)
        return self[package]

    def killer(self, package: str, mutant: Mutant) -> str:
        """The package whose tests fail on a mutant, its own before others; empty if it survives."""
        if self[package].failure(mutant):
            return package
        others = [name for name in packages(self._root) if name != package]
        return next((name for name in others if self[name].failure_of_executing(mutant)), "")


def main() -> int:
    """Test the mutants and print which survived."""
    parser = argparse.ArgumentParser(description="Do the tests find small changes of the code?")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=60, help="how many mutants (default: 60)")
    parser.add_argument("--package", action="append", choices=[*packages()], help="only these")
    arguments = parser.parse_args()
    _FORKS.set_forkserver_preload(list(LIBRARIES))  # not for who imports this: there is one list
    killers = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        copy_checkout(root)
        modules, tests = packages(root), PackagesTests(root)
        chosen = {package: modules[package] for package in arguments.package or modules}
        for package, mutant in draw(chosen, arguments.seed, arguments.count):
            started = time.monotonic()
            killer = tests.killer(package, mutant)
            killers.append((package, killer))
            how = "SURVIVED" if not killer else "killed" if killer == package else f"by {killer}"
            print(
                f"{how:<8} {time.monotonic() - started:4.0f} s "
                f"{mutant.path.relative_to(root)}:{mutant.line}: {mutant.old} -> {mutant.new}",
                flush=True,
            )
    killed = [package == killer for package, killer in killers if killer]
    share = len(killed) / arguments.count
    print(
        f"{len(killed)} of {arguments.count} killed, {share:.0%}, {sum(killed)} of them by the "
        f"tests of their own package; seed {arguments.seed}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
