"""Modules in processes of their own, which do not see the folder that a command is started in."""

import os
import subprocess
import sys
import time
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


@pytest.fixture
def without_pytorch(monkeypatch, tmp_path) -> str:
    """Where processes find an empty `torch`: for tests of what becomes of them, not of models."""
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "torch.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return str(folder)


@pytest.mark.process
def test_a_module_ends_with_a_caller_that_is_killed(without_pytorch):
    sleep = 'run_isolated("timeit", ["-n1", "-r1", "import time; time.sleep(60)"])'
    code = f"from pipelines.console.isolated import run_isolated; {sleep}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), without_pytorch])}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as caller:
        process, children = psutil.Process(caller.pid), []
        while len(children) < 2:  # the one that forks, and its fork
            assert caller.poll() is None
            children = process.children(recursive=True)
            time.sleep(0.02)
        caller.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


@pytest.mark.process
def test_modules_run_in_forks_of_one_process_which_has_pytorch_in_memory(
    monkeypatch, tmp_path, without_pytorch
):
    """Each with the folder and MLflow's variables of its own call; another environment, another."""
    code = "import os, sys; print(os.getppid(), 'torch' in sys.modules, 'dca' in sys.modules, "
    shown = ["-n1", "-r1", f"{code} os.getcwd(), os.environ.get('MLFLOW_A'), os.environ['OTHER'])"]

    def run() -> list[str]:
        child = run_isolated("timeit", shown)
        assert child.returncode == 0, child.stderr
        return child.stdout.splitlines()[0].split()

    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("OTHER", "1")
    first, *state = run()
    assert state == ["True", "False", str(Path.cwd()), "None", "1"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_A", "b")
    assert run() == [first, "True", "False", str(tmp_path), "b", "1"]
    for name, value in {"PYTHONPATH": without_pytorch, "OTHER": "2"}.items():
        monkeypatch.setenv(name, value)
        before, first = first, run()[0]
        assert first != before
        assert not psutil.pid_exists(int(before))


@pytest.mark.process
@pytest.mark.usefixtures("without_pytorch")
def test_a_module_that_fails_and_a_process_that_is_killed_are_told():
    child = run_isolated("pipelines.generate", ["--modle=x"])
    assert (child.returncode, child.stdout) == (2, "")
    assert child.stderr.endswith("--modle=x; did you mean --model?\n")
    child = run_isolated("pipelines.nothing", [])
    assert child.returncode == 1
    assert child.stderr.strip().endswith("No module named pipelines.nothing")
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert run_isolated("timeit", ["-n1", "-r1", kill]).returncode == -9
    kill = "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"
    assert run_isolated("timeit", ["-n1", "-r1", kill]).returncode == -9
    parent = ["-n1", "-r1", "import os; print(os.getppid())"]
    server = psutil.Process(int(run_isolated("timeit", parent).stdout.split()[0]))
    server.kill()
    while server.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert run_isolated("timeit", parent).returncode == 0
