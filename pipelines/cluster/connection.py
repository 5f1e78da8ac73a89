"""Start a Ray cluster on this machine, or connect to the one that RAY_ADDRESS names.

The commands open a `ray_session`; the stages that train or time steps `connect` when they need Ray.
"""

import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from pipelines.cluster.capacity import Cluster, Node
from pipelines.cluster.local.watcher import start_watcher
from pipelines.compat import ray as names
from pipelines.compat.ray_variables import own_variables, unreadable_variables
from pipelines.console.errors import ConfigError, PipelineError, Problem, StorageError
from pipelines.console.process import process_restored
from pipelines.console.text import first_line, one_line
from pipelines.storage.private import make_private, private_folder, private_place
from pipelines.storage.project import ROOT
from pipelines.storage.scratch import scratch_folder

MAX_PORT = 65535
START_SECONDS = 20
"""How long a command that ends waits for a cluster of this machine that it still starts."""
PROBE_SECONDS = 5
"""How long the address of a cluster may take to accept a connection."""
HEALTH_SECONDS = 12
"""How long it may take to answer as the head node of a Ray, a process's start included."""
EXPECTED = "expected HOST:PORT of a head node"
NO_NODE = "this machine is no node of it; expected `ray job submit`, or before this `ray start"
_starters: list["_Starter"] = []
"""That of this process, if a cluster has been started early."""
_watchers: list["subprocess.Popen[bytes]"] = []
"""The one of this process, while a cluster of this machine runs for it."""


@contextmanager
def ray_session() -> Iterator[None]:
    """The scope of one command, within which it may `connect`.

    At its end Ray is shut down, and the environment, the signal handlers and the levels of Ray's
    loggers are as before: the next command in this process starts as in one of its own.

    Raises ConfigError for variables that Ray cannot read, at which it would end the process.
    """
    if unreadable := {} if is_ray_job() else unreadable_variables():
        raise ConfigError(
            *(
                Problem(f"Ray cannot read it; expected {expected}", f"{name}={os.environ[name]}")
                for name, expected in unreadable.items()
            )
        )
    with process_restored():
        try:
            yield
        finally:
            shutdown()


def cluster_address() -> str | None:
    """The cluster to connect to; None for one that is started on this machine."""
    address = os.environ.get("RAY_ADDRESS")
    return None if address in ("", "local") else address


def start_early(*, dashboard: bool = False) -> None:
    """Begin to start the cluster of this machine in a thread, for a `connect` that will follow.

    Ray needs seconds, most of them in processes of its own: in these a command can import what it
    needs. Nothing is done where RAY_ADDRESS names a cluster. An error is for `connect` to raise.
    """
    if not cluster_address() and not _starters:
        _set_defaults(names.ENVIRONMENT)
        _starters.append(_Starter(dashboard=dashboard))
        _starters[0].start()


def machine_cpus() -> int:
    """The processors that a cluster of this machine has, or would have."""
    _set_defaults(names.ENVIRONMENT)  # Ray reads them as it is imported
    return names.machine_cpus()


def is_ray_job() -> bool:
    """Whether `ray job submit` has started this command, in a copy of the working directory."""
    return names.JOB_CONFIG in os.environ


def connect(*, dashboard: bool = False) -> Cluster:
    """Connect to the Ray cluster, unless this process is connected; returns its nodes.

    Args:
        dashboard: Whether a cluster that is started gets one. Trials of several workers need it:
            Ray Train frees the resources of workers whose trial was stopped only with a dashboard,
            which is eight more processes.

    Raises:
        ConfigError: If there is no cluster at RAY_ADDRESS.

    """
    _set_defaults(names.ENVIRONMENT)
    for starter in _starters:
        starter.wait()
    import ray

    if not ray.is_initialized():
        _initialize(ray, dashboard=dashboard)
    return alive_nodes(ray)


def shutdown() -> None:
    """Disconnect from Ray; a cluster that `connect` has started ends, at the latest with the
    process: where an interrupt has kept a lock, the thread in which it starts waits for ever."""
    for starter in _starters:
        if not starter.has_started(START_SECONDS):
            _starters.clear()
            return
    if ray := sys.modules.get("ray"):
        ray.shutdown()
        names.print_messages(wanted=True)
    while _starters:
        _starters.pop().close()
    while _watchers:
        watcher = _watchers.pop()
        watcher.kill()
        watcher.wait()


def session_folder() -> Path:
    """Where a cluster of this machine has its logs, sockets and copies of code.

    Ray opens its folders to all users, those that it finds too, so they lie in a private folder: in
    RAY_TMPDIR, or in TMPDIR if its path is short enough for sockets.
    """
    if named := os.environ.get("RAY_TMPDIR"):
        parent = Path(os.path.expanduser(named)).absolute()  # noqa: PTH111  leaves unknown users
        return private_place(parent) / "ray"
    folder = private_folder() / "ray"
    if len(os.fsencode(folder)) > names.MAX_FOLDER_BYTES:
        folder = private_folder("/tmp") / "ray"
    return folder


def short_session_folder() -> Path:
    """The same, with the private folder around it.

    Raises ConfigError if its path is too long, there is no short one, or it cannot be made.
    """
    try:
        folder = session_folder()
    except StorageError as error:
        message = f"{error}; expected a folder for Ray's sockets"
        raise ConfigError(Problem(message, "RAY_TMPDIR")) from None
    if len(os.fsencode(folder)) > names.MAX_FOLDER_BYTES:
        message = (
            f"{folder}: expected at most {names.MAX_FOLDER_BYTES} bytes: "
            "the paths of Ray's sockets in it would be too long"
        )
        raise ConfigError(Problem(message, "RAY_TMPDIR"))
    if named := os.environ.get("RAY_TMPDIR"):
        try:
            make_private(folder.parents[1])
            private_folder(str(folder.parents[1]))
        except (OSError, StorageError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(Problem(f"{named}: {reason}", "RAY_TMPDIR")) from None
    return folder


def alive_nodes(ray: Any) -> Cluster:
    """The nodes that Ray counts as alive."""
    return [
        Node(
            node[names.NODE_ADDRESS],
            node[names.NODE_RESOURCES].get("CPU", 0),
            node[names.NODE_RESOURCES].get("GPU", 0),
            node[names.NODE_ID],
        )
        for node in ray.nodes()
        if node[names.NODE_ALIVE]
    ]


class _Starter(threading.Thread):
    """Starts a cluster of this machine, which ends with this thread: Linux ends Ray's processes
    with the thread that has started them."""

    def __init__(self, *, dashboard: bool) -> None:
        super().__init__(daemon=True)
        self._dashboard = dashboard
        self._error: BaseException | None = None
        self._ready, self._closed = threading.Event(), threading.Event()

    def run(self) -> None:
        """Start it, or keep the error, and wait for `close`."""
        try:
            import ray

            _initialize(ray, dashboard=self._dashboard)
        except BaseException as error:  # or `wait` would wait for ever
            self._error = error
        self._ready.set()
        self._closed.wait()

    def has_started(self, seconds: float) -> bool:
        """Whether it has, or has failed, in so many seconds."""
        return self._ready.wait(seconds)

    def wait(self) -> None:
        """Wait until it has started. Raises its error."""
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self.join()


def _initialize(ray: Any, *, dashboard: bool) -> None:
    address = cluster_address()
    settings: dict[str, Any]
    if address:
        settings = {"address": _head_node(address), "runtime_env": _runtime_env()}
    else:  # never a cluster that was found by chance; its processes inherit the environment
        _set_defaults({**names.LOCAL_ENVIRONMENT, **_own_token()})
        settings = {
            "address": "local",
            "include_dashboard": dashboard,
            "_temp_dir": str(short_session_folder()),
        }
    for name in names.LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    names.print_messages(wanted=False)
    with ExitStack() as stack:
        stack.enter_context(names.without_signal_handlers())
        if not address:
            if not _watchers:
                _watchers.append(start_watcher())
            stack.enter_context(names.own_process_groups())
            stack.enter_context(names.loopback_only())
            stack.enter_context(names.without_working_folder())
        try:
            ray.init(**settings, log_to_driver=False, logging_level="ERROR", configure_logging=True)
        except ConnectionError as error:
            raise ConfigError(Problem(str(error), f"RAY_ADDRESS={address}")) from None
        except Exception as error:  # of no common type: a process of Ray's was too slow, or died
            if address:  # of another version, or with no node on this machine
                reason = one_line(" ".join(str(error).split()) or type(error).__name__)
                raise ConfigError(Problem(reason, f"RAY_ADDRESS={address}")) from error
            message = "Ray did not start on this machine: has it memory and idle processors?"
            given = ", ".join(own_variables())
            hint = f"; the environment has {given}" if given else ""
            raise PipelineError(f"{message} {first_line(error)}{hint}") from error


def _runtime_env() -> dict[str, Any]:
    """Settings and code for the processes of other machines. Never credentials: Ray would write
    them into its logs."""
    if is_ray_job():  # whose nodes have its working directory
        return {"env_vars": names.ENVIRONMENT}
    code = [str(ROOT / "dca"), str(ROOT / "pipelines")]
    return {"env_vars": names.ENVIRONMENT, "py_modules": code, "excludes": ["__pycache__"]}


def _head_node(address: str) -> str:
    """HOST:PORT of the head node that RAY_ADDRESS names.

    Raises ConfigError unless it answers: Ray would wait for minutes, deaf to signals.
    """
    found = names.started_cluster() if address == "auto" else address
    message = ""
    if found is None:
        message = f"`ray start` has started none on this machine; {EXPECTED}"
    elif "://" in found:
        client = "; Ray Client cannot run a search" if found.startswith("ray://") else ""
        message = f"{EXPECTED}{client}"
    elif reason := _no_answer(found):
        message = f"no Ray cluster answers there ({reason}); {EXPECTED}"
    else:
        message = _no_head_node(found)
    if message:
        raise ConfigError(Problem(message, f"RAY_ADDRESS={address}"))
    assert found is not None
    return found


def _no_head_node(address: str) -> str:
    """Why what accepts connections there is no head node for this user and this machine; empty if
    it is one."""
    token = f"RAY_AUTH_MODE=token, and its token in RAY_AUTH_TOKEN or in ~/{names.TOKEN_FILE}"
    try:
        if names.is_head_node(address, seconds=HEALTH_SECONDS):
            return "" if names.has_node() else f"{NO_NODE} --address={address}`"
        reason = "what answers there is no Ray cluster"
    except PermissionError:
        return f"the token of the Ray cluster there is missing or wrong; expected {token}"
    except TimeoutError:
        reason = f"no Ray cluster answered there in {HEALTH_SECONDS} s"
    return f"{reason}; {EXPECTED}; if it asks for a token, {token}"


def _no_answer(address: str) -> str:
    """Why nothing accepts a connection there; empty if something does."""
    host, _, port = address.rpartition(":")
    if not host:
        return "it has no port" if port == address else "it has no host"
    if not (port.isdecimal() and 0 < int(port) <= MAX_PORT):
        return f"expected a port of 1 to {MAX_PORT}"
    try:
        socket.create_connection((host, int(port)), timeout=PROBE_SECONDS).close()
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def _own_token() -> dict[str, str]:
    """Make the password of a cluster of this machine, readable by this user alone, unless it is
    there. Returns the variable with its path, for a user whose home cannot be written.

    Ray would make it readable for all users, by the usual umask.
    """
    if any(map(os.environ.get, names.TOKEN_VARIABLES)):
        return {}
    path, variable = Path.home() / names.TOKEN_FILE, {}
    folder = next(parent for parent in path.parents if os.access(parent, os.F_OK))
    if os.access(path, os.R_OK):
        with suppress(OSError):  # its owner is another user
            path.chmod(0o600)
    elif os.access(folder, os.W_OK):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    else:
        path = private_folder() / "ray-token"
        variable = {names.TOKEN_PATH: str(path)}
    if not os.access(path, os.F_OK):
        with scratch_folder(path.parent) as scratch:
            own = scratch / path.name
            own.touch(0o600)
            own.write_text(secrets.token_hex(32))
            with suppress(OSError):  # another process was faster; without links Ray makes it
                path.hardlink_to(own)
    return variable


def _set_defaults(variables: dict[str, str]) -> None:
    for name, value in variables.items():
        os.environ.setdefault(name, value)
