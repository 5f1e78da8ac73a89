"""The Ray cluster: one of this machine's own, or the one RAY_ADDRESS names."""

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

import torch

from pipelines.runtime.config import Config, Resources
from pipelines.runtime.errors import ConfigError
from pipelines.runtime.storage import Storage
from pipelines.runtime.tracking import COMMIT, tracking_uri

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
RAYS_GPUS = ("cuda", "xpu")
"""PyTorch's names of what Ray calls GPUs."""
LOCAL_ENVIRONMENT = {
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # default 60: how late a killed Ray is noticed
    "RAY_memory_monitor_refresh_ms": "0",  # its way to end a trial ends Tune; the kernel's does not
}
"""Of a cluster of this machine only."""
LOOK_SECONDS = 120
"""Within which every node must have answered: its first process loads torch."""
ROOT = Path(__file__).parents[2]
PACKAGES = ("ray", "torch", "numpy", "safetensors", "pydantic")
"""What must be the same on every node for what travels between them to be understood."""
ROUNDING = 1e-9


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, with what Ray may use of it."""

    address: str
    cpus: float
    gpus: float = 0
    id: str = ""
    """Ray's."""

    def __str__(self) -> str:
        gpus = f", {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.address} ({self.cpus:g} CPUs{gpus})"

    def room(self, resources: Resources) -> int:
        """How many workers of these resources fit: none is spread over nodes, or over GPUs unless
        it has whole ones."""
        by_cpus = int(self.cpus // resources.cpus_per_worker)
        each = resources.gpus_per_worker
        if not each:
            return by_cpus
        if each < 1:
            return min(by_cpus, int(self.gpus) * int(1 / each + ROUNDING))
        return min(by_cpus, int(self.gpus // each))


Cluster = Sequence[Node]


def join(*, dashboard: bool = False) -> Cluster:
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
    return _alive(ray)


def _alive(ray: Any) -> Cluster:
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
    if _is_job():  # whose nodes have its working directory
        return {"env_vars": ENVIRONMENT}
    code = [str(ROOT / "dca"), str(ROOT / "pipelines")]
    return {"env_vars": ENVIRONMENT, "py_modules": code, "excludes": ["__pycache__"]}


def leave() -> None:
    """End what `join` has begun: a cluster of this command's own ends with it."""
    if ray := sys.modules.get("ray"):
        ray.shutdown()


def survey(config: Config) -> Cluster:
    """The nodes that `join` would find, without starting Ray on this machine.

    Raises ConfigError if there are several, and they do not have in common what the configuration
    needs: tracking store, storage, packages. So it does in a `ray job submit` that leaves to chance
    where results go.
    """
    if _is_job():
        _refuse(_left_to_chance(config))
    if not os.environ.get("RAY_ADDRESS"):
        found = torch.accelerator.current_accelerator(check_available=True)
        gpus = torch.accelerator.device_count() if found and found.type in RAYS_GPUS else 0
        return [Node("this machine", os.cpu_count() or 1, gpus)]
    cluster = join()
    if len(cluster) > 1:
        _refuse(_not_shared(config, len(cluster)))
        _refuse(_differences(config, cluster))
        return join()  # a node that died lately has been found out
    return cluster


def slots(cluster: Cluster, resources: Resources) -> int:
    """How many jobs of these resources fit the cluster at once, each with its least workers.

    A job's workers may be on several nodes; they get their places all at once or not at all.
    """
    return sum(node.room(resources) for node in cluster) // resources.least


def require(cluster: Cluster, resources: Resources, key: str) -> None:
    """Raise ConfigError if one job of these resources does not fit the cluster."""
    if slots(cluster, resources) >= 1:
        return
    gpus = f" and {resources.gpus_per_worker:g} GPUs" if resources.gpus_per_worker else ""
    room = sum(node.room(resources) for node in cluster)
    nodes = ", ".join(map(str, cluster))
    raise ConfigError(
        f"{key}: workers={resources.least} of {resources.cpus_per_worker} CPUs{gpus} each; "
        f"there is room for {room} of them on {nodes}"
    )


def _is_job() -> bool:
    """Whether `ray job submit` has started this command, in a copy of the working directory."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _left_to_chance(config: Config) -> Iterator[str]:
    """What a job's disposable working directory cannot be asked for."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        yield "MLFLOW_TRACKING_URI: expected in a Ray job, whose working directory is discarded"
    if Storage.of(config.storage).is_local and not Path(config.storage).is_absolute():
        yield (
            f"storage: expected a URI or an absolute path in a Ray job, got {config.storage}: "
            "its working directory is discarded"
        )
    if not os.environ.get(COMMIT):
        yield f"{COMMIT}: expected in a Ray job, which has no .git: the commit that was submitted"


def _not_shared(config: Config, nodes: int) -> Iterator[str]:
    """What serves one machine only."""
    if (uri := tracking_uri()).startswith("sqlite:"):
        yield (
            f"MLFLOW_TRACKING_URI={uri}: a file serves one machine, the cluster has {nodes}; "
            "start `mlflow server` on a database and set MLFLOW_TRACKING_URI=http://HOST:PORT"
        )
    if Storage.of(config.storage).is_local:
        yield (
            f"storage: {config.storage} is a folder of one machine, the cluster has {nodes}; "
            "expected storage=s3://BUCKET/PATH, or storage=file:///PATH of a folder that every "
            "node has mounted"
        )


def _differences(config: Config, cluster: Cluster) -> Iterator[str]:
    """Nodes that cannot use the storage, or have other packages than this one."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0)(_look)
    there = [NodeAffinitySchedulingStrategy(node.id, soft=False) for node in cluster]
    with Storage.of(config.storage).marked() as mark:
        asked = [
            look.options(scheduling_strategy=node).remote(config.storage, mark) for node in there
        ]
        ray.wait(asked, num_returns=len(asked), timeout=LOOK_SECONDS)
    here = _versions()
    for node, answer in zip(cluster, asked, strict=True):
        try:
            problem, versions = ray.get(answer, timeout=0)
        except ray.exceptions.RayError as error:
            if node not in _alive(ray):
                continue
            yield f"node {node.address}: cannot be used: {str(error).strip().splitlines()[-1]}"
            continue
        if problem:
            yield f"node {node.address}: {problem}"
        for name in here:
            if versions[name] != here[name]:
                yield (
                    f"node {node.address}: {name} {versions[name]}; "
                    f"expected {here[name]}, as here, on every node"
                )


def _look(storage: str, mark: str) -> tuple[str | None, dict[str, str]]:
    """On a node: what is wrong with its way to the storage, and what it has installed."""
    try:
        Storage.of(storage).probe(mark)
    except ConfigError as error:
        return str(error), _versions()
    return None, _versions()


def _versions() -> dict[str, str]:
    found = {"Python": python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def _refuse(problems: Iterator[str]) -> None:
    """Raise ConfigError with all of them, one a line."""
    if found := list(problems):
        raise ConfigError("\n".join(found))


def _probe(address: str) -> None:
    """Ray waits for minutes at a wrong address; look first whether anybody listens."""
    if address in ("auto", "local") or "://" in address:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ConfigError(f"RAY_ADDRESS={address}: nobody answers there ({error})") from None
