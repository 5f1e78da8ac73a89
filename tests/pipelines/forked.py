"""A command in a process that is forked from one with its libraries in memory.

Each of them takes half a dozen seconds to import what every command imports; hundreds are run.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

METHOD = "forkserver"
FORKS = multiprocessing.get_context(METHOD)
FORKS.set_forkserver_preload(["tests.pipelines.preloaded"])


class Command:
    """What `subprocess.Popen` would be of `python SCRIPT ARGUMENTS`, in text mode, output piped.

    The script may be -m or -c. Packages in `without` are not in memory: it imports its own. What is
    `given`, a few lines, it reads from a pipe as its standard input.
    """

    def __init__(
        self,
        script: Path | str,
        arguments: Sequence[str],
        cwd: Path,
        environment: dict[str, str],
        without: Sequence[str] = (),
        given: str = "",
    ) -> None:
        self._output = tempfile.TemporaryDirectory()
        for name in ("out", "err"):  # which may be read before the process has begun
            Path(self._output.name, name).touch()
        argv = [str(script), *arguments]
        task = (argv, cwd, environment, Path(self._output.name), without, given)
        self._process = FORKS.Process(target=_become, args=task)
        self._process.start()
        self.args = argv

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """How it has ended: less than 0 by a signal."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same, for those who expect a method."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Unless it has ended; to all processes of its group, as a terminal sends Ctrl-C, except
        for SIGKILL."""
        if self.returncode is None:
            with suppress(ProcessLookupError):  # it has no group yet
                if number != signal.SIGKILL:
                    os.killpg(self.pid, number)
                    return
            os.kill(self.pid, number)

    def kill(self) -> None:
        """At once."""
        self.send_signal(signal.SIGKILL)

    def screen(self) -> str:
        """Its standard output until now."""
        return self._written()[0]

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; returns standard output and standard error."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0, *self._written())
        return self._written()

    def _written(self) -> tuple[str, str]:
        out, err = (Path(self._output.name, name).read_text() for name in ("out", "err"))
        return out, err


def run(
    command: Sequence[str],
    *,
    without: Sequence[str] = (),
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    **_: object,
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` would return of a command of Python, in text mode, output captured."""
    process = Command(command[1], command[2:], cwd or Path.cwd(), env or dict(os.environ), without)
    out, err = process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _become(
    argv: list[str],
    cwd: Path,
    environment: dict[str, str],
    output: Path,
    without: Sequence[str],
    given: str,
) -> None:
    """Be the command, with nothing of the process that this one was forked from, and the leader of
    a group of processes."""
    os.setpgid(0, 0)
    for number, name in ((1, "out"), (2, "err")):
        descriptor = os.open(output / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    if given:
        pipe, end = os.pipe()
        os.write(end, given.encode())
        os.close(end)
        os.dup2(pipe, 0)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  buffered as for a pipe
    sys.argv[:] = argv
    added = [folder for folder in environment.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.path[:0] = [str(Path(argv[0]).parent), *added]
    for name in [name for name in sys.modules if name.partition(".")[0] in without]:
        del sys.modules[name]
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    multiprocessing.set_start_method(None, force=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _execute()
    finally:
        sys.stdout.flush()
        threading._shutdown()  # as at the end of any Python
        atexit._run_exitfuncs()


def _execute() -> None:
    """Run what `sys.argv` names."""
    if sys.argv[0] == "-c":
        exec(sys.argv.pop(1), {"__name__": "__main__"})
    elif sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
