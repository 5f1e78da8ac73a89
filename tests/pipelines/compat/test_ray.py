"""What pipelines.compat.ray relies on is still what Ray does."""

import ctypes
import inspect
import logging
import os
import pickle
import signal
import sys
import time
from contextlib import suppress
from mmap import ACCESS_READ, mmap
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray
import torch
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray._common.usage import usage_constants
from ray._private import accelerators, ray_constants, utils
from ray._private.authentication import authentication_token_setup
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator
from ray.train.constants import RAY_CHDIR_TO_TRIAL_DIR
from ray.train.torch import TorchConfig
from ray.train.v2._internal import constants as train_constants
from ray.train.v2._internal.util import construct_user_exception_with_traceback
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from ray.tune import tune
from ray.tune.constants import TUNE_ENV_VARS
from ray.tune.execution import tune_controller
from ray.tune.execution.class_cache import _ActorClassCache
from ray.tune.experimental import output
from ray.tune.utils import callback

from pipelines.cluster.connection import connect, ray_session, session_folder, start_early
from pipelines.cluster.local.sessions import ended_sessions
from pipelines.compat import ray as compat

TRAIN = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "HEALTH_CHECK_INTERVAL_S_ENV_VAR",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "WORKER_GROUP_START_TIMEOUT_S_ENV_VAR",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "ENABLE_PREEMPTION_WATCHER_ENV_VAR",
    "RAY_TRAIN_METRICS_ENABLED": "METRICS_ENABLED_ENV_VAR",
}
TUNE = {
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": tune_controller,
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": callback,
    "TUNE_DISABLE_SIGINT_HANDLER": tune,
}
OTHERS = {
    "RAY_AIR_NEW_OUTPUT",
    "RAY_CHDIR_TO_TRIAL_DIR",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
    "RAY_IGNORE_UNHANDLED_ERRORS",
}
BINARY = Path(ray.__file__).parent / "core" / "src" / "ray"


def test_every_variable_of_the_environment_is_tested_here():
    assert set(compat.ENVIRONMENT) == {*TRAIN, *TUNE, *OTHERS, *compat.THREADS}


@pytest.mark.parametrize(("name", "constant"), TRAIN.items())
def test_ray_train_reads_the_variable(name, constant):
    assert getattr(train_constants, constant) == name


@pytest.mark.parametrize(("name", "module"), TUNE.items())
def test_tune_reads_the_variable(name, module):
    assert name in TUNE_ENV_VARS
    assert name in inspect.getsource(module)


def test_the_variable_turns_tunes_own_output_off(monkeypatch):
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "1")
    assert output.get_air_verbosity(1) is not None
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", compat.ENVIRONMENT["RAY_AIR_NEW_OUTPUT"])
    assert output.get_air_verbosity(1) is None


def test_the_variable_turns_the_statistics_of_rays_use_off():
    (name,) = compat.USAGE
    assert name == usage_constants.USAGE_STATS_ENABLED_ENV_VAR


def test_trials_keep_the_working_folder_and_workers_without_a_gpu_see_none():
    names = {RAY_CHDIR_TO_TRIAL_DIR, accelerators.RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO_ENV_VAR}
    assert OTHERS - {"RAY_AIR_NEW_OUTPUT", "RAY_IGNORE_UNHANDLED_ERRORS"} == names


def test_the_variable_turns_tracebacks_off_that_the_driver_does_not_fetch(monkeypatch):
    printed: list[Exception] = []
    monkeypatch.setattr("ray._private.worker._unhandled_error_handler", printed.append)
    worker = SimpleNamespace(deserialize_objects=lambda *_: [ValueError()])
    name = "RAY_IGNORE_UNHANDLED_ERRORS"
    monkeypatch.delenv(name, raising=False)
    ray._private.worker.Worker.raise_errors(worker, [], [])
    monkeypatch.setenv(name, compat.ENVIRONMENT[name])
    ray._private.worker.Worker.raise_errors(worker, [], [])
    assert len(printed) == 1


@pytest.mark.parametrize(
    "name",
    sorted({*compat.LOCAL_ENVIRONMENT, *compat.TOKEN_VARIABLES} - {"GLOO_SOCKET_IFNAME"}),
)
@pytest.mark.parametrize("program", ["gcs/gcs_server", "raylet/raylet"])
def test_the_compiled_programs_contain_the_variable(name, program):
    assert name.encode() in (BINARY / program).read_bytes()


@pytest.mark.parametrize("name", compat.THREADS)
def test_pytorchs_openmp_reads_how_long_its_threads_wait(name):
    (library,) = (Path(torch.__file__).parent / "lib").glob("libgomp*")
    assert name.encode() in library.read_bytes()


def test_pytorch_reads_the_interface_of_its_messages():
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    with library.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        assert content.find(b"GLOO_SOCKET_IFNAME") > 0


def test_names_of_the_environment_and_of_resources():
    assert compat.NICENESS == ray_constants.RAY_WORKER_NICENESS
    assert compat.START_TIMEOUT in compat.ENVIRONMENT
    assert compat.JOB_CONFIG == RAY_JOB_CONFIG_JSON_ENV_VAR
    assert compat.HEAD_NODE == HEAD_NODE_RESOURCE_NAME


def test_the_password_of_a_cluster_is_looked_for_where_ray_looks(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path / compat.TOKEN_FILE == authentication_token_setup._get_default_token_path()
    assert authentication_token_setup.AUTH_MODE_ENV_VAR in compat.TOKEN_VARIABLES


def below() -> set[psutil.Process]:
    """The processes that this one has started, and they."""
    return {*psutil.Process().children(recursive=True)}


def listening(others: set[psutil.Process]) -> list[str]:
    """The addresses at which this process accepts connections, and those below it: not others."""
    found = []
    for process in (psutil.Process(), *below()):
        with suppress(psutil.Error):  # it has ended
            if not others & {process, *process.parents()}:
                found += process.net_connections("inet")
    return [one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN]


def test_what_ray_says_of_a_token_that_is_wrong_names_the_variable():
    assert compat.TOKEN_VARIABLES[0] in str(ray.exceptions.AuthenticationError("refused"))


def action(number: int) -> bytes:
    """What the system does at a signal, as its own structure begins: the handler's address."""
    found = ctypes.create_string_buffer(512)
    ctypes.CDLL(None).sigaction(number, None, found)
    return found.raw[:8]


@pytest.mark.ray
def test_a_cluster_of_this_machine_is_closed_to_others_and_has_the_names_and_the_niceness(
    monkeypatch,
):
    monkeypatch.delenv(compat.NICENESS, raising=False)
    monkeypatch.setattr(compat, "LOGGERS", ())
    before, others = action(signal.SIGTERM), below()
    with ray_session():
        start_early(dashboard=True)
        connect(dashboard=True)
        assert action(signal.SIGTERM) == before
        (node,) = ray.nodes()
        nice = ray.get(ray.remote(lambda: os.nice(0)).remote())
        actor = type("Actor", (), {"modules": lambda _: set(sys.modules)})
        with compat.variables_for_trials(inherited=True):
            trial = _ActorClassCache().get(actor).remote()
        loaded = ray.get(trial.modules.remote())
        later = ray.remote(runtime_env={"env_vars": {"A": "1"}})(actor).remote()
        loaded_later = ray.get(later.modules.remote())
        addresses = listening(others)
        head = ray._private.worker._global_node.gcs_address
        assert compat.is_head_node(head, seconds=30)
        assert compat.has_node()
        other = f"127.0.0.1:{node['NodeManagerPort']}"  # another service of Ray
        assert not compat.is_head_node(other, seconds=30)
        with monkeypatch.context() as changed, pytest.raises(PermissionError):
            changed.setenv("RAY_AUTH_MODE", "token")
            changed.setenv(compat.TOKEN_PATH, "/no")
            compat.is_head_node(head, seconds=30)
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        assert session not in ended_sessions()
        groups = []
        for process in below() - others:
            with suppress(ProcessLookupError):  # it has ended
                groups.append(os.getpgid(process.pid))
        assert len(groups) > 8
        assert os.getpgrp() not in groups
    monkeypatch.setattr(psutil, "pid_exists", lambda number: number != os.getpid())
    # Workers of a cluster end a moment after the process that started them has left it.
    deadline = time.monotonic() + 60
    while session not in ended_sessions():
        assert time.monotonic() < deadline, "the session never ended"
        time.sleep(0.1)
    assert len(addresses) > 8
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}
    assert session.parent == session_folder()
    assert session.parent.parent.stat().st_mode & 0o777 == 0o700
    assert all(len(str(path)) <= 107 for path in (session / "sockets").iterdir())
    assert node[compat.NODE_ADDRESS] == "127.0.0.1"
    assert node[compat.NODE_ALIVE] is True
    assert isinstance(node[compat.NODE_ID], str)
    assert node[compat.NODE_RESOURCES]["CPU"] == compat.machine_cpus()
    assert compat.HEAD_NODE in node[compat.NODE_RESOURCES]
    assert {compat.LOCAL_ENVIRONMENT[compat.PRELOADED], "pipelines.cluster.trial"} <= loaded
    assert compat.LOCAL_ENVIRONMENT[compat.PRELOADED] in loaded_later
    assert "torch" not in loaded_later
    assert nice == min(19, os.nice(0) + compat.DEFAULT_NICENESS)


def test_the_loggers_are_those_of_ray():
    modules = {name: logging.getLogger(name) for name in compat.LOGGERS}
    assert ray.logger.name.startswith("ray")
    assert tune.logger.name.startswith("ray.tune")
    assert all(logger is logging.getLogger(name) for name, logger in modules.items())


def test_a_workers_own_exception_is_found_below_the_wrapping():
    own = ValueError("no such thing")
    error = WorkerGroupError("text", {1: construct_user_exception_with_traceback(own)})
    error = pickle.loads(pickle.dumps(error))  # as it comes from the controller's process
    found = compat.worker_exception(error)
    assert isinstance(found, ValueError)
    assert compat.last_line(found) == "ValueError: no such thing"


def test_an_error_without_a_workers_exception_is_the_reason_itself():
    dead = ray.exceptions.ActorDiedError()
    assert compat.worker_exception(WorkerGroupError("text", {0: dead})) is dead
    assert compat.last_line(dead).startswith("The actor died")
    late = ControllerError(TimeoutError("waited\nfor workers"))
    assert compat.worker_exception(late) is late
    assert compat.last_line(late) == "for workers"


MEMORY = """Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.1, ID: a1) was 15.20GB / 16.00GB, which exceeds the threshold.
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io. Set the
environment variable `RAY_memory_monitor_refresh_ms` to zero to disable worker killing."""


def test_a_crash_in_one_line_is_the_cause_not_the_advice_below_it():
    killed = compat.crash_line(ray.exceptions.OutOfMemoryError(MEMORY))
    assert killed == f"OutOfMemoryError: {MEMORY.splitlines()[0]}"
    text = "ray::train()\n  File a.py, line 1\nValueError: no such thing"
    task = ray.exceptions.RayTaskError("train", text, ValueError("no such thing"))
    assert compat.crash_line(task) == "ValueError: no such thing"
    assert compat.crash_line(MemoryError()) == "MemoryError"


def test_workers_are_prepared_before_the_process_group_is_made(monkeypatch):
    called: list[str] = []

    def prepare() -> None:
        called.append("prepared")

    class Group:
        def execute(self, function, *arguments, **named):
            function(*arguments, **named)

    original = TorchConfig().backend_cls
    monkeypatch.setattr(original, "on_start", lambda *_: called.append("process group"))
    backend = compat.torch_backend(prepare)
    assert issubclass(backend, original)
    backend().on_start(Group(), TorchConfig())
    assert called == ["prepared", "process group"]


def test_the_group_of_workers_runs_a_function_in_each():
    from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup

    assert list(inspect.signature(WorkerGroup.execute).parameters)[:2] == ["self", "fn"]


class Actor:
    """Calls the methods of an object as those of an actor are called."""

    def __init__(self, of):
        self._of = of

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self._of, name))


def test_what_is_asked_of_the_autoscaler_is_added_to_what_others_ask_for(monkeypatch):
    sent = []
    actor = coordinator._AutoscalingCoordinatorActor(
        send_resources_request=sent.append, get_cluster_nodes=list
    )
    monkeypatch.setattr(coordinator, "get_or_create_autoscaling_coordinator", lambda: Actor(actor))
    actor.request_resources("train", [{"GPU": 1}], 100)
    request = compat.AutoscalerRequest("search", lasts_seconds=100)
    request.withdraw()  # of nothing
    request.ask([{"CPU": 1}] * 2)
    request.ask([{"CPU": 1}])
    request.withdraw()
    others = [{"GPU": 1}]
    assert sent == [others, [*others, {"CPU": 1}, {"CPU": 1}], [*others, {"CPU": 1}], others]


def test_the_cluster_that_was_started_last_is_found_where_ray_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "get_ray_address_file", lambda folder: str(tmp_path / "address"))
    assert compat.started_cluster() is None
    utils.write_ray_address("10.0.0.1:6379", None)
    assert compat.started_cluster() == "10.0.0.1:6379"
