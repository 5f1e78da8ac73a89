"""What holds for the project as a whole: pins, import direction, sizes."""

import ast
import re
import socket
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
SOURCES = sorted(p for top in ("dca", "pipelines") for p in (ROOT / top).rglob("*.py"))
RANKS = [
    {"dca"},
    {"pipelines.compat"},
    {"pipelines.console"},
    {"pipelines.config"},
    {"pipelines.storage"},
    {"pipelines.data"},
    {"pipelines.training"},
    {"pipelines.tracking"},
    {"pipelines.cluster", "pipelines.engine", "pipelines.comparison"},
    {"pipelines.registry"},
    {"pipelines.search"},
    {"pipelines.experiment"},
    {"pipelines.cost", "pipelines.reporting"},
    {"pipelines.stages"},
    {"pipelines.sweep", "pipelines.train", "pipelines.generate", "pipelines.promote"},
]
"""Packages from the bottom up: each imports those below it, and none beside or above it."""
MAX_MODULE_LINES, MAX_FUNCTION_LINES, MAX_PACKAGE_MODULES = 400, 60, 12
KERNELS = {"dca/fused/mix_triton_kernels.py", "dca/fused/mix_triton.py"}
"""Triton compiles a kernel as one function."""


def pins(lines: list[str]) -> dict[str, str]:
    found = (re.match(r"([\w.-]+)(?:\[[^]]*\])?==([\w.]+)(?:;.*)?$", line) for line in lines)
    return {match[1].lower(): match[2] for match in found if match}


def test_a_unit_test_that_starts_a_process_or_a_server_fails():
    with pytest.raises(RuntimeError, match=r"subprocess\.Popen in .+: mark it"):
        subprocess.run([sys.executable, "-c", ""], check=False)
    with socket.socket() as server, pytest.raises(RuntimeError, match=r"socket\.bind in"):
        server.bind(("127.0.0.1", 0))


def test_pyproject_and_lock_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = pins([*project["dependencies"], *project["optional-dependencies"]["dev"]])
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    locked = pins(lines)
    assert len(locked) == len(lines)
    assert {name: locked.get(name) for name in declared} == declared
    assert locked["torch"] == "2.13.0"
    assert int(locked["pyarrow"].split(".")[0]) < 26
    unpinned = [d for d in project["dependencies"] if "==" not in d]
    assert unpinned == ["pyarrow<26"]


def test_conda_installs_the_same_lock():
    environment = YAML(typ="safe").load((ROOT / "environment.yml").read_text())
    python, _, pip = environment["dependencies"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert python.replace("=", ">=", 1) == f"python{project['requires-python']}"
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    """All nodes of a module's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text())))


@cache
def imports(path: Path) -> set[str]:
    nodes = nodes_of(path)
    plain = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    return plain | {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}


def rank(module: str) -> int:
    """The place of a module in the order; a command is the last."""
    names = (n for n, names in enumerate(RANKS) for name in names if is_in(module, name))
    return next(names, len(RANKS))


def is_in(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def package_of(module: str) -> str:
    return next((name for names in RANKS for name in names if is_in(module, name)), module)


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_imports_go_one_way():
    wrong = {shown(path): names for path in SOURCES if (names := imports_upwards(path))}
    assert wrong == {}


def imports_upwards(path: Path) -> set[str]:
    """What a module imports of packages beside or above its own."""
    module = name_of(path)
    ours = {name for name in imports(path) if name.split(".")[0] in ("dca", "pipelines")}
    others = {name for name in ours if package_of(name) != package_of(module)}
    return {name for name in others if rank(name) >= rank(module)}


def test_every_package_has_its_place_in_the_order():
    packages = {name_of(path) for path in SOURCES if path.name == "__init__.py"}
    nested = {"dca.architectures", "dca.residuals"}
    assert {name for name in packages if rank(name) == len(RANKS)} - nested == {"pipelines"}


def test_a_module_fits_in_a_few_screens_and_a_function_in_one():
    lines = {shown(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: n for name, n in lines.items() if n > MAX_MODULE_LINES} == {}
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    sizes = {
        f"{shown(path)}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in SOURCES
        if shown(path) not in KERNELS
        for node in nodes_of(path)
        if isinstance(node, functions)
    }
    assert {name: n for name, n in sizes.items() if n > MAX_FUNCTION_LINES} == {}


def test_a_package_holds_one_noun_and_says_which():
    folders = {path.parent for path in SOURCES}
    counts = {folder.name: len(list(folder.glob("[!_]*.py"))) for folder in folders}
    assert {name: n for name, n in counts.items() if n > MAX_PACKAGE_MODULES} == {}
    for folder in folders - {ROOT / "pipelines"}:
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert docstring, f"{folder}: what it owns and who uses it"


@pytest.mark.parametrize(
    ("library", "packages"),
    [
        ("mlflow", {"pipelines.tracking", "pipelines.registry", "pipelines.compat"}),
        ("optuna", {"pipelines.search", "pipelines.reporting", "pipelines.compat"}),
        ("matplotlib", {"pipelines.reporting"}),
        ("tensorboardX", {"pipelines.tracking"}),
        ("triton", {"dca"}),
        ("ray", {"pipelines.cluster", "pipelines.search", "pipelines.cost", "pipelines.compat"}),
        ("rich", {"pipelines.console", "pipelines.promote"}),
        ("ruamel", {"pipelines.config", "pipelines.compat"}),
        ("pyarrow", {"pipelines.storage"}),
        ("requests", {"pipelines.data", "pipelines.tracking"}),
        ("tenacity", {"pipelines.console"}),
    ],
)
def test_a_library_is_imported_where_it_is_driven_and_nowhere_else(library, packages):
    users = {
        package_of(name_of(path))
        for path in SOURCES
        if any(name.split(".")[0] == library for name in imports(path))
    }
    assert users <= packages


def test_the_command_names_every_stage():
    from pipelines.stages import sweep_stages
    from pipelines.stages.corpus import CorpusStage
    from pipelines.sweep import STAGE_NAMES

    assert [stage.name for stage in sweep_stages(CorpusStage())] == STAGE_NAMES


def test_the_model_needs_torch_and_einops_alone():
    standard = set(sys.stdlib_module_names)
    used = {n.split(".")[0] for p in (ROOT / "dca").rglob("*.py") for n in imports(p)}
    on_gpus = {"triton"}  # comes with torch for GPUs, and is not needed without one
    assert used - standard - on_gpus == {"dca", "torch", "einops"}
