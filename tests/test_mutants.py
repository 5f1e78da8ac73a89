"""What the mutation tests change, and that they change nothing else."""

import ast
import sys
from pathlib import Path

import pytest

from tests import mutants
from tests.mutants import ROOT, PackagesTests, PackageTests, draw, find_tests, mutants_of, packages
from tests.pipelines import forked

SOURCE = '''"""Doc, 1 + 1."""

__all__ = ["f"]
SIZE: tuple[int, 2] = 3
CHUNK_BYTES = 1 << 7


@decorated(frozen=True)
def f(x: 4 = None, *, flag: bool = True) -> 5:
    """Doc 6 < 7."""
    text = f"{x + 8}"  # a comment
    x *= SIZE
    if not x and x != "é" or x < 0.5:
        return -x if flag else text
    return ü(x,
             y=x is None, strict=True)  # 9


if __name__ == "__main__":
    f(10)
'''


@pytest.fixture
def module(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(SOURCE)
    return path


def test_operators_constants_and_conditions_are_changed_and_no_types_texts_and_decorators(module):
    assert [(mutant.line, mutant.old, mutant.new) for mutant in mutants_of(module)] == [
        (4, "3", "4"),
        (9, "True", "False"),
        (12, "x *= SIZE", "x += SIZE"),
        (12, "x *= SIZE", "x /= SIZE"),
        (13, "not x and x != 'é' or x < 0.5", "(not x and x != 'é') and x < 0.5"),
        (13, "not x and x != 'é'", "not x or x != 'é'"),
        (13, "not x", "x"),
        (13, "x != 'é'", "x == 'é'"),
        (13, "x < 0.5", "x <= 0.5"),
        (13, "x < 0.5", "x >= 0.5"),
        (13, "0.5", "1.0"),
        (14, "flag", "not flag"),
        (14, "-x", "x"),
        (16, "x is None", "x is not None"),
    ]


def test_a_mutant_differs_in_one_place_alone(module):
    for mutant in mutants_of(module):
        assert ast.dump(ast.parse(mutant.text)) != ast.dump(ast.parse(SOURCE))
        lines = zip(SOURCE.splitlines(), mutant.text.splitlines(), strict=True)
        assert [n for n, (a, b) in enumerate(lines, 1) if a != b] == [mutant.line]


def test_the_seed_decides_and_every_package_has_its_turn():
    every = packages()
    modules = {name: every[name] for name in ("dca", "pipelines/config", "pipelines")}
    first, again, other = (draw(modules, seed, 6) for seed in (0, 0, 1))
    assert first == again != other
    assert [name for name, _ in first] == 2 * [*modules]
    assert all(mutant.path in modules[name] for name, mutant in first)
    assert len(set(first)) == len(first)
    alone = draw({"pipelines/config": modules["pipelines/config"]}, 0, 2)
    assert alone == [pair for pair in first if pair[0] == "pipelines/config"]


def test_every_package_has_tests_and_those_of_commands_have_no_subfolders():
    for package in packages():
        files = find_tests(package, ROOT)
        assert files
        assert files == sorted(
            {path for path in files if path.startswith(f"{ROOT}/tests/{package}")}
        )
    assert {Path(path).parent for path in find_tests("pipelines", ROOT)} == {
        ROOT / "tests/pipelines"
    }
    assert f"{ROOT}/tests/pipelines/console/test_text.py" in find_tests("pipelines/console", ROOT)


SMALL = """
def larger(a, b):
    if a >= b:
        return a
    return b
"""
TESTS = """
from dca.small import larger

def test_first():
    assert larger(1, 2) == 2
"""


@pytest.mark.process
def test_commands_are_forked_from_a_process_that_has_what_they_import():
    """Python has one list for all such processes, which an import of the mutants once replaced."""
    code = "import sys; print('pipelines.promote' in sys.modules)"
    assert forked.run([sys.executable, "-c", code]).stdout == "True\n"


OTHER_TESTS = """
from dca.small import larger

def test_second():
    assert isinstance(larger(1, 1.0), int)
"""


@pytest.mark.process
def test_a_mutant_that_no_test_fails_on_survives(tmp_path, monkeypatch):
    monkeypatch.setattr(mutants, "_FORKS", forked.FORKS)  # with what other tests fork from
    module, tests = tmp_path / "dca" / "small.py", tmp_path / "tests" / "dca" / "test_small.py"
    for path, text in ((module, SMALL), (tests, TESTS)):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    module.with_name("__init__.py").touch()
    found = PackageTests("dca", tmp_path)
    assert {line.removeprefix(f"{module}:") for line in found._lines} == {"3", "5"}
    ends = {mutant.new: found.failure(mutant) for mutant in mutants_of(module)}
    assert "1 failed" in ends.pop("a < b")
    assert ends == {"a > b": ""}
    assert module.read_text() == SMALL


@pytest.mark.process
def test_a_mutant_may_be_killed_by_the_tests_of_another_package(tmp_path, monkeypatch):
    monkeypatch.setattr(mutants, "_FORKS", forked.FORKS)
    module, own = tmp_path / "dca" / "small.py", tmp_path / "tests" / "dca" / "test_small.py"
    others = tmp_path / "tests" / "pipelines" / "test_others.py"
    for path, text in ((module, SMALL), (own, TESTS), (others, OTHER_TESTS)):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    module.with_name("__init__.py").touch()
    mutant = next(mutant for mutant in mutants_of(module) if mutant.new == "a > b")
    assert PackagesTests(tmp_path).killer("dca", mutant) == "pipelines"
    others.write_text(OTHER_TESTS.replace("larger(1, 1.0)", "1"))
    assert PackagesTests(tmp_path).killer("dca", mutant) == ""
