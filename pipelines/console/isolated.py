"""Modules of this project run in processes of their own, without the caller's folder on their path.

    python -P pipelines/console/isolated.py PARENT MODULE [ARGUMENT ...]

where PARENT is the id of the caller's process, with which it ends.

Used where a packaged model is run: it brings a `dca` of its own, of which a process can import one.
In such a process a module is found where Python's packages are installed, or in the package, but
not in the folder in which the command was started, nor in the project's: a file `torch.py` there
would be executed. As a script it imports nothing of this project but the module.
"""

import atexit
import gc
import importlib.util
import os
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of the package `pipelines`."""


def isolated_command(module: str, arguments: Sequence[str]) -> list[str]:
    """The command with which this process runs a module as `python -m` would."""
    file = str(Path(__file__).resolve())
    return [sys.executable, "-P", file, str(os.getpid()), module, *arguments]


def isolated_environment() -> dict[str, str]:
    """This process's environment with a PYTHONPATH without the working folder."""
    here, paths = Path.cwd().resolve(), os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = [path for path in paths if Path(path).is_absolute() and Path(path).resolve() != here]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(kept)}


def run_isolated(module: str, arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run a module to its end, with its output captured."""
    return subprocess.run(
        isolated_command(module, arguments),
        env=isolated_environment(),
        capture_output=True,
        text=True,
    )


def end_with_parent(parent: int) -> None:
    """End this process soon after the one that started it, which may be killed, or has been."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _find_project() -> None:
    """Let `pipelines` be imported from beside this file, without its folder on the path."""
    spec = importlib.util.spec_from_file_location(
        PACKAGE.name, PACKAGE / "__init__.py", submodule_search_locations=[str(PACKAGE)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE.name] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    atexit.register(gc.freeze)  # no search for garbage at the end, which takes a fifth of the time
    _find_project()
    _, caller, name, *rest = sys.argv
    end_with_parent(int(caller))
    sys.argv = [name, *rest]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
