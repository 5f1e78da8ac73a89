"""Modules of this project run in processes of their own, without the caller's folder on their path.

    python -P pipelines/console/isolated.py PARENT MODULE [ARGUMENT ...]

where PARENT is the id of the caller's process, with which it ends. Without a module it waits for
requests on its standard input, a socket, and runs each in a fork of itself: PyTorch is loaded once.

Used where a packaged model is run: it brings a `dca` of its own, of which a process can import one.
In such a process a module is found where Python's packages are installed, or in the package, but
not in the folder in which the command was started, nor in the project's: a file `torch.py` there
would be executed. As a script it imports nothing of this project but the module.
"""

import atexit
import contextlib
import gc
import importlib
import importlib.util
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

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
    if sys.platform == "linux":
        return _run_in_fork(module, arguments)
    return subprocess.run(  # where not all libraries work after a fork
        isolated_command(module, arguments),
        env=isolated_environment(),
        capture_output=True,
        text=True,
    )


class _Server:
    """The process whose forks run modules, for one caller and one environment."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.owner, self.environment = os.getpid(), _without_mlflow(environment)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the server
        self._connection, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = isolated_command("", [])[:-1]
        with other:
            self._process: int | None = os.posix_spawn(
                sys.executable,
                command,
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, other.fileno(), 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, self._errors.fileno(), 2),
                ],
                setsid=True,  # Ctrl-C is for the caller
            )
        atexit.register(self.close)

    def serves(self, environment: dict[str, str]) -> bool:
        """Whether modules would find what they find in a new process with that environment.

        MLflow reads its variables when it needs them: they come with each request.
        """
        if self.owner != os.getpid() or self._process is None:
            return False
        if os.waitid(os.P_PID, self._process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
        return self.environment == _without_mlflow(environment)

    def run(
        self, module: str, arguments: Sequence[str], environment: dict[str, str]
    ) -> "subprocess.CompletedProcess[str]":
        """Run a module in a fork, to its end. If it is interrupted, the server has ended too."""
        request = {"module": module, "arguments": list(arguments), "environment": environment}
        with (
            tempfile.TemporaryFile("w+") as given,
            tempfile.TemporaryFile("w+", errors="replace") as out,
            tempfile.TemporaryFile("w+", errors="replace") as err,
        ):
            json.dump({**request, "folder": str(Path.cwd())}, given)
            for file in (given, out, err):
                file.seek(0)
            try:
                code = self._answer([given, out, err])
            except BaseException:
                self.close()
                raise
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess([module, *arguments], code, out.read(), err.read())

    def _answer(self, files: list[IO[str]]) -> int:
        """The exit code of a fork; if the server ended, its own, and its errors as the fork's."""
        answer = b""
        with contextlib.suppress(ConnectionError):
            socket.send_fds(self._connection, [b" "], [file.fileno() for file in files])
            answer = self._connection.recv(64)
        if answer:
            return int(answer)
        with self._errors:
            code = self._end()
            self._errors.seek(0)
            files[2].write(self._errors.read())
        return code or 1

    def close(self) -> None:
        """End the server and what it runs."""
        self._end()
        self._errors.close()

    def _end(self) -> int:
        """The exit code of the server, negative for a signal."""
        atexit.unregister(self.close)
        self._connection.close()
        if self._process is None or self.owner != os.getpid():
            return 0
        process, self._process = self._process, None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


_servers: list[_Server] = []
"""The one of this process, if there is one."""
_lock = threading.Lock()


def _run_in_fork(module: str, arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    environment = isolated_environment()
    with _lock:
        if not (_servers and _servers[0].serves(environment)):
            for server in _servers:
                server.close()
            _servers[:] = [_Server(environment)]
        try:
            return _servers[0].run(module, arguments, environment)
        except BaseException:
            _servers.clear()
            raise


def _without_mlflow(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith("MLFLOW_")}


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


def _serve(caller: int) -> None:
    """Run each requested module in a fork, until the caller ends or closes the socket."""
    import torch  # noqa: F401 - for all forks: each loads a model

    connection = socket.socket(fileno=os.dup(0))
    connection.settimeout(1)
    while os.getppid() == caller:
        try:
            _, files, *_ = socket.recv_fds(connection, 1, 3)
        except TimeoutError:
            continue
        if not files:
            return
        with os.fdopen(files[0]) as given:
            request = json.load(given)
        if request["module"].startswith(f"{PACKAGE.name}."):
            with contextlib.suppress(Exception):  # the fork fails with the same error
                importlib.import_module(request["module"])  # with what it imports, for all forks
        gc.freeze()
        fork = os.fork()
        if not fork:
            connection.close()
            _run_request(request, *files[1:])
        for file in files[1:]:
            os.close(file)
        connection.send(str(_exit_code(fork, caller)).encode())


def _exit_code(fork: int, caller: int) -> int:
    """Wait for a fork; end with it if the caller has ended."""
    while True:
        ended, status = os.waitpid(fork, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if os.getppid() != caller:
            os.killpg(0, signal.SIGKILL)
        time.sleep(0.01)


def _run_request(request: dict[str, Any], out: int, err: int) -> None:
    """Run a module in this fork as a command of its own, and end."""
    code = 1
    try:
        end_with_parent(os.getppid())
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.modules.pop(request["module"], None)
        sys.argv = [request["module"], *request["arguments"]]
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    atexit.register(gc.freeze)  # no search for garbage at the end, which takes a fifth of the time
    _find_project()
    _, caller, *rest = sys.argv
    if not rest:
        _serve(int(caller))
    else:
        end_with_parent(int(caller))
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
