"""Mutation tests: change one place of the code at a time, and see whether its tests fail.

    python tests/mutants.py [--seed N] [--count N] [--package PATH ...]

A mutant has another operator, constant or condition. The places are drawn from one package after
the other: the n-th mutant of a package depends on the seed alone. Each mutant is tested in a copy
of the checkout with the tests of its package, until the first failure. One that no test fails on
has survived: a test is missing, or the two programs do the same.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
CHOSEN_ELSEWHERE = ("annotation", "returns", "decorator_list", "bases", "format_spec")
"""Fields whose values are types, or decide how a class is made: no behaviour that a test sees."""
MIN_LIMIT_SECONDS, MAX_SECONDS = 60, 1800


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
    """Whether it is for tools, as `__all__` and `if TYPE_CHECKING:`, for a start as a script, or
    an assertion: `strict=True`."""
    if isinstance(node, ast.keyword):
        return node.arg == "strict"
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) == "__all__"
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


def find_tests(package: str, module: Path, root: Path) -> list[str]:
    """The files of tests of a package, that of the module first."""
    folder = root / "tests" / package
    own = f"test_{module.stem}"
    if package == "pipelines":
        files = list(folder.glob(f"{own}*.py")) or [folder / "test_commands.py"]
    else:
        files = sorted(folder.rglob("test_*.py"))
    return [str(p) for p in sorted(files, key=lambda p: p.stem != own)]


def copy_checkout(to: Path) -> None:
    """Copy what git tracks, and new files that it does not ignore."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def failure(tests: list[str], root: Path, limit: float) -> str:
    """The end of pytest's output if a test fails, or they take longer than `limit` seconds."""
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            if process.wait(limit) == 0:
                return ""
        except subprocess.TimeoutExpired:
            return f"longer than {limit:.0f} seconds"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        return output.read()[-3000:] or "no output"


def main() -> int:
    """Test the mutants and print which survived."""
    parser = argparse.ArgumentParser(description="Do the tests find small changes of the code?")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=60, help="how many mutants (default: 60)")
    parser.add_argument("--package", action="append", choices=[*packages()], help="only these")
    arguments = parser.parse_args()
    survived = 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        copy_checkout(root)
        modules = packages(root)
        chosen = {package: modules[package] for package in arguments.package or modules}
        limits: dict[tuple[str, ...], float] = {}
        for package, mutant in draw(chosen, arguments.seed, arguments.count):
            tests = find_tests(package, mutant.path, root)
            key = tuple(sorted(tests))
            if key not in limits:
                started = time.monotonic()
                if output := failure(tests, root, MAX_SECONDS):
                    print(f"{output}\n{package}: its tests fail without a mutant; mend them first")
                    return 1
                limits[key] = max(MIN_LIMIT_SECONDS, 3 * (time.monotonic() - started))
            original, started = mutant.path.read_text(), time.monotonic()
            mutant.path.write_text(mutant.text)
            killed = failure(tests, root, limits[key]) != ""
            mutant.path.write_text(original)
            survived += not killed
            print(
                f"{'killed  ' if killed else 'SURVIVED'} {time.monotonic() - started:4.0f} s "
                f"{mutant.path.relative_to(root)}:{mutant.line}: {mutant.old} -> {mutant.new}",
                flush=True,
            )
    killed_count = arguments.count - survived
    share = killed_count / arguments.count
    print(f"{killed_count} of {arguments.count} killed, {share:.0%}; seed {arguments.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
