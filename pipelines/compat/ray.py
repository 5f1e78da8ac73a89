"""Names of Ray that are private, or that only its sources document.

Used by pipelines.cluster, pipelines.cost and pipelines.search, some of which run without Ray: Ray
itself is imported inside the functions that need it.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from traceback import format_exception_only
from types import SimpleNamespace
from typing import Any

THREADS = {"GOMP_SPINCOUNT": "1000"}
"""How often a thread of PyTorch's OpenMP looks for work before it sleeps. The default is
milliseconds, in which it keeps others from its core: two processes of two threads on two cores took
20 times as long as one alone, with this 1.6 times, and one alone no longer. Read as PyTorch loads.
"""
USAGE = {"RAY_USAGE_STATS_ENABLED": "0"}
"""Ray's head node would send what it is used for, by default."""
ENVIRONMENT = {
    **THREADS,
    # How often Ray Train's controller polls its workers (default 2 s): the delay at a run's end.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # How long workers may take to start (default 60 s): too short on a busy laptop.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    # An actor per training run that watches for preempted nodes.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Prometheus metrics of Ray Train, which are not read.
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Tune's own progress output: `pipelines.console` prints progress.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Trials would change to a folder of their own, and relative paths would break.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Tune would refuse the result of a trial that diverged: it has no objective.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # CSV, JSON and TensorBoard files of each trial: the results are in MLflow.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Tune's handler of Ctrl-C: `pipelines.console.command` handles it.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # The traceback of each trial whose error a driver that ends does not fetch any more.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    # A worker that requests no GPU would see all of them.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
}
"""Settings of the driver, and of the processes that it starts on any node."""
PRELOADED = "RAY_preload_python_modules"
"""What Ray's worker processes import as they start."""
LOCAL_ENVIRONMENT = {
    # Seconds until a process exits whose Ray was killed (default 60).
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    # Ray's memory monitor ends Tune with the trial that it kills; the kernel's does not.
    "RAY_memory_monitor_refresh_ms": "0",
    # Ray starts a worker for each core at once, which then imports what trials need while the
    # driver still prepares the first ones.
    PRELOADED: "pipelines.cluster.local.preload",
    # The interface of the messages between workers (default: that of the host's name).
    "GLOO_SOCKET_IFNAME": "lo",
}
"""Settings of a cluster that is started on this machine only."""
TOKEN_FILE = ".ray/auth_token"
"""In the user's home: the password of the clusters that `ray.init` starts, made at the first."""
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", TOKEN_PATH, "RAY_AUTH_MODE")
"""Any of them, and Ray does not look for that file."""
START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""Set anew for elastic training: training must not wait minutes for a dead node."""
NICENESS = "RAY_worker_niceness"
"""How much nicer than Ray its worker processes are."""
DEFAULT_NICENESS = 15
"""Of Ray's workers: steps that are timed without Ray run as nice as they."""
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it, under this odd name, in a process that `ray job submit` has started."""
NO_JOB = ("RAY_JOB_ID", "ffffffff")
"""A variable of a worker process that was started before there was a job for it, and its value."""
HEAD_NODE = "node:__internal_head__"
"""A resource of the head node only."""
NODE_ID_LABEL = "ray.io/node-id"
"""A label of every node."""
SESSIONS = "session_*_*_*"
"""The folders of clusters in Ray's temporary folder; its other files are links to the last one."""
MAX_FOLDER_BYTES = 38
"""Of the folder in which a cluster has those of its sessions: the paths of the sockets in them are
69 longer, and the system allows 107."""
LOGGERS = ("ray", "ray.tune", "ray.train")
"""Loggers with a level of their own."""
NODE_ALIVE, NODE_ID, NODE_ADDRESS, NODE_RESOURCES = (
    *("Alive", "NodeID", "NodeManagerAddress", "Resources"),
)
"""Keys of an entry of `ray.nodes()`, which no documentation lists."""


def started_cluster() -> str | None:
    """HOST:PORT of the head that `ray start` has started last on this machine, running or not.

    `ray.init("auto")` would take any running one, that of another command among them.
    """
    from ray._private.services import find_bootstrap_address

    found: str | None = find_bootstrap_address(None)
    return found


def has_node() -> bool:
    """Whether a node of a cluster runs on this machine: without one `ray.init` waits for a minute,
    and then fails."""
    from ray._private.services import find_node_ids

    return bool(find_node_ids())


def machine_cpus() -> int:
    """The processors that a node of this machine would have: in a container those of its limit."""
    from ray._private.utils import get_num_cpus

    return max(1, int(get_num_cpus(override_docker_cpu_warning=True)))


def is_head_node(address: str, *, seconds: float) -> bool:
    """Whether HOST:PORT answers as the control service of a Ray cluster.

    Asked in a process of its own: the client tries again for minutes, in threads that nothing ends,
    prints warnings, and ends its process in the end.

    Raises:
        PermissionError: If the cluster's token is missing or wrong.
        TimeoutError: If it does not answer in so many seconds.

    """
    code = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
    try:
        child = subprocess.run(
            [sys.executable, "-c", code, address],
            env={**os.environ, "RAY_BACKEND_LOG_LEVEL": "fatal"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(address) from None
    if TOKEN_VARIABLES[0].encode() in child.stderr:  # each of Ray's messages names it
        raise PermissionError(address)
    return child.returncode == 0


def torch_backend(prepare: Callable[[], None]) -> type[Any]:
    """Ray Train's backend for PyTorch, with `prepare` called in each worker before the process
    group is made. There is no public hook at that moment."""
    from ray.train.torch.config import _TorchBackend

    class Backend(_TorchBackend):
        """Prepared workers."""

        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(prepare)
            super().on_start(worker_group, backend_config)

    return Backend


def worker_exception(error: BaseException) -> BaseException:
    """The exception that ended a training: the first worker's own under Ray Train's wrapping, or
    the error as it is where no worker raised one.

    Ray Train keeps a worker's exception, without a public accessor, beside its traceback as text.
    """
    failures = list(getattr(error, "worker_failures", {}).values())
    failure: BaseException = failures[0] if failures else error
    return getattr(failure, "_base_exc", failure)


def last_line(error: BaseException) -> str:
    """The last line of an error's text, where Ray puts the cause below a traceback; of others
    their type and message."""
    remote = type(error).__module__.partition(".")[0] == "ray"
    text = str(error) if remote else "".join(format_exception_only(error))
    return (text.strip() or type(error).__name__).splitlines()[-1]


def crash_line(error: BaseException) -> str:
    """An error in one line: its type and the first line of its text, below which Ray's own errors
    give advice; of those that carry a traceback as text, the last line.
    """
    from ray.exceptions import RayTaskError
    from ray.tune import TuneError

    if isinstance(error, RayTaskError | TuneError):
        return last_line(error)
    name, text = type(error).__name__, str(error).strip().partition("\n")[0]
    return f"{name}: {text}" if text else name


class NotPickled:
    """Base of a searcher, scheduler or callback of Tune, which may hold threads and locks.

    Tune pickles them as a Tuner is made, for `Tuner.restore`. That is never used: a resumed search
    is built from the tracking store.
    """

    def __getstate__(self) -> dict[str, Any]:
        """An empty state."""
        return {}


class AutoscalerRequest:
    """What a command asks the autoscaler of its cluster for, beside what others ask for.

    `ray.autoscaler.sdk.request_resources` would replace what Ray Train asks for, and would be kept
    for ever after a command that was killed. Ray Train and Ray Data have an actor that adds up what
    is asked for, each for a time.
    """

    def __init__(self, name: str, *, lasts_seconds: float) -> None:
        """`name` distinguishes it; `lasts_seconds` after it was asked for it is forgotten."""
        self._name, self._seconds = name, lasts_seconds
        self._actor: Any = None

    def ask(self, bundles: list[dict[str, float]]) -> None:
        """Ask for nodes on which all of these fit at once, those that run there included."""
        from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as names

        if self._actor is None:
            self._actor = names.get_or_create_autoscaling_coordinator()
        self._actor.request_resources.remote(
            requester_id=self._name, resources=bundles, expire_after_s=self._seconds
        )

    def withdraw(self) -> None:
        """Ask for nothing any more."""
        if self._actor is not None:
            self._actor.cancel_request.remote(self._name)


def print_messages(*, wanted: bool) -> None:
    """Let Ray print what its nodes report, such as a worker that died, or not.

    It would be among a command's own lines on standard output, which may be JSON; Ray's setting for
    it, `log_to_driver`, is for what workers print. The trial that crashed has a line of its own.
    """
    from ray._private import worker

    printer = _printer()
    worker.print_to_stdstream = printer if wanted else lambda *_, **__: None


@cache
def _printer() -> Callable[..., None]:
    """What Ray prints with."""
    from ray._private import worker

    found: Callable[..., None] = worker.print_to_stdstream
    return found


@contextmanager
def loopback_only() -> Iterator[None]:
    """Make a cluster that is started in the time of a block listen on the loopback interface only.

    Ray's servers listen on all interfaces unless the node's own address is 127.0.0.1. That address,
    given to `ray.init`, is replaced by the machine's, except where Ray supports no other nodes: on
    macOS and Windows, or with this constant, which the environment sets before Ray is imported.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def without_signal_handlers() -> Iterator[None]:
    """Keep Ray from handling signals in a block in which it starts or connects.

    At SIGTERM its library in C++ would print where each thread is and end the process, and its node
    would end it with exit code 1. Both would be in force until their handlers are replaced.
    """
    from ray._private import ray_constants, utils

    before = ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER, utils.set_sigterm_handler
    ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER, utils.set_sigterm_handler = before


@contextmanager
def own_process_groups() -> Iterator[None]:
    """Keep what a terminal or a shell sends to a command and its processes from those of a Ray that
    starts in a block: Ctrl-C would end some of its dashboard's, SIGHUP and SIGTERM all of them.
    """
    from ray._private import services

    before = services.ConsolePopen
    services.ConsolePopen = partial(before, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = before


@contextmanager
def without_working_folder() -> Iterator[None]:
    """Keep the workers of a driver that connects in a block from importing from its folders.

    Ray puts the driver's working folder and that of its script first on each worker's path: a file
    `torch.py` there would be executed. It does not for a driver whose job brings its own folder.
    """
    from ray.job_config import JobConfig

    before = JobConfig._runtime_env_has_working_dir
    JobConfig._runtime_env_has_working_dir = lambda self: True
    try:
        yield
    finally:
        JobConfig._runtime_env_has_working_dir = before


@contextmanager
def variables_for_trials(*, inherited: bool) -> Iterator[None]:
    """Keep Tune from sending variables of this process to its actors, in the time of a block.

    Where the actors' processes have inherited them anyway, none is sent: an actor with variables of
    its own gets a new process, though Ray has started one for each core. To other machines go all
    but the AWS keys: Ray's agents write what is sent into their logs, and each node has keys of its
    own. Tune has no setting for this.
    """
    from ray.tune.execution import class_cache

    before = class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE
    if inherited:
        class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE = {}, set()
    else:
        kept = {name for name in before[1] if not name.startswith("AWS_")}
        class_cache.ENV_VARS_TO_PROPAGATE = kept
    try:
        yield
    finally:
        class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE = before


def has_no_job() -> bool:
    """Whether this process was started by a node that waits for its first job."""
    name, value = NO_JOB
    return os.environ.get(name) == value


def trial_stub(trial_id: object, config: dict[str, Any] | None = None) -> SimpleNamespace:
    """What Tune's ASHA reads of a trial: its id, by which the rungs keep values.

    ASHA takes trials of its own Tuner only; a stub stands for one that has ended before.
    """
    return SimpleNamespace(trial_id=trial_id, config=config or {})


def trial_error(trial: Any) -> BaseException:
    """The exception that ended a trial of Tune, as it was raised in the trial's process.

    `Trial.get_pickled_error` reads a copy that is made only later, with Tune's next snapshot. What
    went wrong in Tune itself is stored as text only.
    """
    from ray import cloudpickle
    from ray.tune import TuneError

    if trial.pickled_error_file:
        error: BaseException = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        return getattr(error, "cause", error)
    return TuneError(
        Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else "unknown error"
    )


def exit_detail(error: BaseException) -> str:
    """How the process of an actor died, the first sentence of Ray's explanation; else empty.

    Ray has it only in the text of the error.
    """
    found = re.search(r"Worker exit detail: (.+?\.)(?: |$)", str(error))
    return found[1] if found else ""
