"""The Ray cluster: one of this machine's own, or the one RAY_ADDRESS names."""

import logging
import os
import signal
import socket
import sys
from typing import Any

import torch

from pipelines.runtime.config import Resources
from pipelines.runtime.errors import ConfigError

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # default 2 s: how late the end of a run is seen
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # default 60 s: too short on a busy laptop
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less for every run
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # progress is ours to print
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DEDUP_LOGS": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that diverged has no objective
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow is the record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours to handle
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # no GPU asked for, no GPU seen
}
CONNECT_SECONDS = 5
RAYS_GPUS = ("cuda", "xpu")
"""PyTorch's names of what Ray calls GPUs."""
LOCAL_ENVIRONMENT = {
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # default 60: how late a killed Ray is noticed
    "RAY_memory_monitor_refresh_ms": "0",  # its way to end a trial ends Tune; the kernel's does not
}
"""Of a cluster of this machine only."""


def join(*, dashboard: bool = False) -> dict[str, float]:
    """Start or join a Ray cluster, unless this process is in one; returns its resources.

    Where trials have several workers, one that is started needs a `dashboard`: only then does Ray
    Train free the resources of workers whose trial was stopped. It is eight processes more. Raises
    ConfigError if RAY_ADDRESS answers to nobody.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray  # after the environment, which it reads on import

    if not ray.is_initialized():
        _join(ray, dashboard=dashboard)
    return dict(ray.cluster_resources())


def _join(ray: Any, *, dashboard: bool) -> None:
    address = os.environ.get("RAY_ADDRESS")
    settings: dict[str, Any]
    if address:
        _probe(address)
        settings = {"address": address, "runtime_env": {"env_vars": ENVIRONMENT}}
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


def leave() -> None:
    """End what `join` has begun: a cluster of this command's own ends with it."""
    if ray := sys.modules.get("ray"):
        ray.shutdown()


def capacity() -> dict[str, float]:
    """The resources `join` would find, without starting Ray on this machine."""
    if os.environ.get("RAY_ADDRESS"):
        return join()
    found = torch.accelerator.current_accelerator(check_available=True)
    gpus = torch.accelerator.device_count() if found and found.type in RAYS_GPUS else 0
    return {"CPU": os.cpu_count() or 1, "GPU": gpus}


def slots(available: dict[str, float], resources: Resources) -> int:
    """How many jobs of these resources fit the cluster at once."""
    cpus = available.get("CPU", 0) // (resources.workers * resources.cpus_per_worker)
    if not resources.gpus_per_worker:
        return int(cpus)
    gpus = available.get("GPU", 0) / (resources.workers * resources.gpus_per_worker)
    return int(min(cpus, gpus + 1e-9))


def require(available: dict[str, float], resources: Resources, key: str) -> None:
    """Raise ConfigError if one job of these resources does not fit the cluster."""
    if slots(available, resources) >= 1:
        return
    cpus = resources.workers * resources.cpus_per_worker
    gpus = resources.workers * resources.gpus_per_worker
    raise ConfigError(
        f"{key}: workers={resources.workers} of {resources.cpus_per_worker} CPUs each need "
        f"{cpus} CPUs and {gpus:g} GPUs; "
        f"the cluster has {available.get('CPU', 0):g} CPUs and {available.get('GPU', 0):g} GPUs"
    )


def _probe(address: str) -> None:
    """Ray waits for minutes at a wrong address; look first whether anybody listens."""
    if address in ("auto", "local") or "://" in address:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ConfigError(f"RAY_ADDRESS={address}: nobody answers there ({error})") from None
