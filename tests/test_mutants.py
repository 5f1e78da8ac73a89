"""What the mutation tests change, and that they change nothing else."""

import ast

import pytest

from tests.mutants import ROOT, draw, find_tests, mutants_of, packages

SOURCE = '''"""Doc, 1 + 1."""

__all__ = ["f"]
SIZE: tuple[int, 2] = 3


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
        (8, "True", "False"),
        (11, "x *= SIZE", "x += SIZE"),
        (11, "x *= SIZE", "x /= SIZE"),
        (12, "not x and x != 'é' or x < 0.5", "(not x and x != 'é') and x < 0.5"),
        (12, "not x and x != 'é'", "not x or x != 'é'"),
        (12, "not x", "x"),
        (12, "x != 'é'", "x == 'é'"),
        (12, "x < 0.5", "x <= 0.5"),
        (12, "x < 0.5", "x >= 0.5"),
        (12, "0.5", "1.0"),
        (13, "flag", "not flag"),
        (13, "-x", "x"),
        (15, "x is None", "x is not None"),
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


def test_the_tests_of_a_package_are_found_and_those_of_the_module_come_first():
    for package, files in packages().items():
        for module in files:
            tests = find_tests(package, module, ROOT)
            assert tests, package
            own = [t for t in tests if t.endswith(f"/test_{module.stem}.py")]
            assert tests[: len(own)] == own
    (first, *_) = find_tests("pipelines/console", ROOT / "pipelines/console/text.py", ROOT)
    assert first.endswith("tests/pipelines/console/test_text.py")
