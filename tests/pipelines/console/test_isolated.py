"""Modules in processes of their own, which do not see the folder that a command is started in."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipelines.console.isolated import isolated_command, isolated_environment, run_isolated
from pipelines.storage.project import ROOT


def test_the_working_folder_is_taken_from_the_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    paths = ["", ".", str(tmp_path), str(tmp_path / "link"), "relative", "/elsewhere"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    assert isolated_environment()["PYTHONPATH"] == "/elsewhere"
    monkeypatch.delenv("PYTHONPATH")
    assert isolated_environment()["PYTHONPATH"] == ""
    file = str(ROOT / "pipelines" / "console" / "isolated.py")
    command = [sys.executable, "-P", file, str(os.getpid()), "a.b", "--c"]
    assert isolated_command("a.b", ["--c"]) == command


@pytest.mark.process
@pytest.mark.parametrize("inside", [True, False])
def test_a_module_of_the_working_folder_is_not_imported(monkeypatch, tmp_path, inside):
    """Neither a library's name nor this project's is looked for there."""
    for name in ("argparse.py", "torch.py", "numpy.py", "pipelines.py", "dca.py"):
        (tmp_path / name).write_text("raise SystemExit('planted')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path if inside else ROOT))
    child = run_isolated("pipelines.storage.digests", [])
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")
    child = run_isolated("pipelines.generate", ["--help"])
    assert child.returncode == 0, child.stderr
    assert "Text from a model" in child.stdout
    assert {path.name for path in Path().iterdir()} == {
        *("argparse.py", "torch.py", "numpy.py", "pipelines.py", "dca.py")
    }


@pytest.mark.process
def test_a_module_ends_with_a_caller_that_is_killed():
    sleep = 'run_isolated("timeit", ["-n1", "-r1", "import time; time.sleep(60)"])'
    code = f"from pipelines.console.isolated import run_isolated; {sleep}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as caller:
        process, children = psutil.Process(caller.pid), []
        while not children or "timeit" not in " ".join(children[0].cmdline()):
            children = process.children()
        caller.kill()  # which the child finds, however far it has started
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
