"""The Ray cluster: one of this machine's own, or the one RAY_ADDRESS names."""

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.cluster.capacity import Cluster, Node
from pipelines.console.errors import ConfigError

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # default 2 s: how late the end of a run is seen
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # default 60 s: too short on a busy laptop
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less for every run
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # progress is ours to print
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that diverged has no objective
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow is the record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours to handle
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # no GPU asked for, no GPU seen
}
CONNECT_SECONDS = 5
LOCAL_ENVIRONMENT = {
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # default 60: how late a killed Ray is noticed
    "RAY_memory_monitor_refresh_ms": "0",  # its way to end a trial ends Tune; the kernel's does not
}
"""Of a cluster of this machine only."""
ROOT = Path(__file__).parents[2]


@contextmanager
def ray_session() -> Iterator[None]:
    """The time in which a command may `connect`: at its end Ray is left, and the environment is as
    it was, so that the next command in this process finds no trace of this one."""
    before = dict(os.environ)
    try:
        yield
    finally:
        shutdown()
        for name in set(os.environ) - set(before):
            if name.startswith(("RAY_", "TUNE_")):
                del os.environ[name]


def connect(*, dashboard: bool = False) -> Cluster:
    """Start or join a Ray cluster, unless this process is in one; returns its nodes.

    Where trials have several workers, one that is started needs a `dashboard`: only then does Ray
    Train free the resources of workers whose trial was stopped. It is eight processes more. Raises
    ConfigError if RAY_ADDRESS answers to nobody.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if not ray.is_initialized():
        _join(ray, dashboard=dashboard)
    return alive_nodes(ray)


def alive_nodes(ray: Any) -> Cluster:
    """The nodes that Ray counts as alive."""
    return [
        Node(
            node["NodeManagerAddress"],
            node["Resources"].get("CPU", 0),
            node["Resources"].get("GPU", 0),
            node["NodeID"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def _join(ray: Any, *, dashboard: bool) -> None:
    address = os.environ.get("RAY_ADDRESS")
    settings: dict[str, Any]
    if address:
        _probe(address)
        settings = {"address": address, "runtime_env": _environment_of_nodes()}
    else:  # never a cluster that nobody named; its processes inherit the environment
        for name, value in LOCAL_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        settings = {"address": "local", "include_dashboard": dashboard}
    on_terminate = signal.getsignal(signal.SIGTERM)
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        ray.init(**settings, log_to_driver=False, logging_level="ERROR", configure_logging=True)
    except ConnectionError as error:
        raise ConfigError(f"RAY_ADDRESS={address}: {error}") from None
    finally:
        signal.signal(signal.SIGTERM, on_terminate)  # Ray puts its own in the place


def _environment_of_nodes() -> dict[str, Any]:
    """What the processes of other machines get from here: settings and code, never credentials,
    which Ray would write into its logs."""
    if is_ray_job():  # whose nodes have its working directory
        return {"env_vars": ENVIRONMENT}
    code = [str(ROOT / "dca"), str(ROOT / "pipelines")]
    return {"env_vars": ENVIRONMENT, "py_modules": code, "excludes": ["__pycache__"]}


def shutdown() -> None:
    """End what `join` has begun: a cluster of this command's own ends with it."""
    if ray := sys.modules.get("ray"):
        ray.shutdown()


def is_ray_job() -> bool:
    """Whether `ray job submit` has started this command, in a copy of the working directory."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _probe(address: str) -> None:
    """Ray waits for minutes at a wrong address; look first whether anybody listens."""
    if address in ("auto", "local") or "://" in address:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ConfigError(f"RAY_ADDRESS={address}: nobody answers there ({error})") from None
