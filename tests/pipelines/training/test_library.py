"""Training is a library: what it imports, and the example of its documentation."""

import inspect
import os
import subprocess
import sys
import textwrap

import pytest

import pipelines.training
from tests.pipelines.commands import wait_until
from tests.pipelines.forked import Command

FOREIGN = ("mlflow", "ray", "optuna", "sqlalchemy", "rich", "tenacity")
IMPORT_ALL = f"""
import pkgutil, sys
from importlib import import_module
import pipelines.training as package
names = [m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
assert len(names) > 10
for name in names:
    import_module(name)
print(*[name for name in {FOREIGN} if name in sys.modules])
"""
IMPORT_PACKAGE = """
import sys
import pipelines.training
print(*[name for name in ("torch", "numpy", "pydantic") if name in sys.modules])
"""
EXAMPLE = textwrap.dedent(
    (inspect.getdoc(pipelines.training) or "").split("checkpoint:\n")[1]
).strip()


@pytest.mark.process
def test_importing_loads_nothing_that_training_does_not_need():
    """The package alone not even PyTorch, and all of its modules nothing foreign."""
    command = [sys.executable, "-c", IMPORT_PACKAGE + IMPORT_ALL]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout.split()) == (0, []), result.stderr


def test_every_public_name_is_there_and_no_other():
    for name in pipelines.training.__all__:
        assert getattr(pipelines.training, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'tarin'"):
        pipelines.training.tarin  # noqa: B018


LOADED = """
import sys
print(*[name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


FLUSHED = "import sys; sys.stdout.reconfigure(line_buffering=True)"


@pytest.mark.extended
@pytest.mark.process
def test_the_example_trains_and_killed_and_started_again_it_resumes(tmp_path, monkeypatch, capsys):
    assert len(EXAMPLE.splitlines()) <= 12
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    monkeypatch.chdir(whole)
    exec(EXAMPLE, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert float(lines[-1].split()[1]) < float(lines[0].split()[1])
    process = Command("-c", [f"{FLUSHED}\n{EXAMPLE}"], killed, dict(os.environ))
    wait_until(lambda: "\n" in process.screen(), process)
    process.kill()
    first = process.communicate()[0].splitlines()[0]
    again = [sys.executable, "-c", f"{EXAMPLE}\n{LOADED}"]
    result = subprocess.run(again, cwd=killed, capture_output=True, text=True, timeout=120)
    *resumed, compiler = result.stdout.splitlines()
    assert compiler == ""  # importing PyTorch's, which nothing here uses, takes 2 s
    assert first == lines[0]
    assert resumed[0].startswith("resumes from step ")
    assert resumed[1:] == lines[-len(resumed[1:]) :]
    assert resumed[-1] == lines[-1]
