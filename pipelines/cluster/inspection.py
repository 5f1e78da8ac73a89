"""The Ray cluster: one of this machine's own, or the one RAY_ADDRESS names."""

import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version

import torch

from pipelines.cluster.capacity import Cluster, Node
from pipelines.cluster.connection import alive_nodes, connect, is_ray_job
from pipelines.console.errors import ConfigError
from pipelines.storage.location import Storage
from pipelines.tracking.schema import COMMIT
from pipelines.tracking.uri import tracking_uri

RAYS_GPUS = ("cuda", "xpu")
"""PyTorch's names of what Ray calls GPUs."""
LOOK_SECONDS = 120
"""Within which every node must have answered: its first process loads torch."""
PACKAGES = ("ray", "torch", "numpy", "safetensors", "pydantic")
"""What must be the same on every node for what travels between them to be understood."""


def inspect_cluster(storage: str) -> Cluster:
    """The nodes that `join` would find, without starting Ray on this machine.

    Raises ConfigError if there are several, and they do not have in common what the configuration
    needs: tracking store, storage, packages. So it does in a `ray job submit` that leaves to chance
    where results go.
    """
    if is_ray_job():
        _refuse(_left_to_chance(storage))
    if not os.environ.get("RAY_ADDRESS"):
        found = torch.accelerator.current_accelerator(check_available=True)
        gpus = torch.accelerator.device_count() if found and found.type in RAYS_GPUS else 0
        return [Node("this machine", os.cpu_count() or 1, gpus)]
    cluster = connect()
    if len(cluster) > 1:
        _refuse(_not_shared(storage, len(cluster)))
        _refuse(_differences(storage, cluster))
        return connect()  # a node that died lately has been found out
    return cluster


def _left_to_chance(storage: str) -> Iterator[str]:
    """What a job's disposable working directory cannot be asked for."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        yield "MLFLOW_TRACKING_URI: expected in a Ray job, whose working directory is discarded"
    if Storage.of(storage).is_local and not Path(storage).is_absolute():
        yield (
            f"storage: expected a URI or an absolute path in a Ray job, got {storage}: "
            "its working directory is discarded"
        )
    if not os.environ.get(COMMIT):
        yield f"{COMMIT}: expected in a Ray job, which has no .git: the commit that was submitted"


def _not_shared(storage: str, nodes: int) -> Iterator[str]:
    """What serves one machine only."""
    if (uri := tracking_uri()).startswith("sqlite:"):
        yield (
            f"MLFLOW_TRACKING_URI={uri}: a file serves one machine, the cluster has {nodes}; "
            "start `mlflow server` on a database and set MLFLOW_TRACKING_URI=http://HOST:PORT"
        )
    if Storage.of(storage).is_local:
        yield (
            f"storage: {storage} is a folder of one machine, the cluster has {nodes}; "
            "expected storage=s3://BUCKET/PATH, or storage=file:///PATH of a folder that every "
            "node has mounted"
        )


def _differences(storage: str, cluster: Cluster) -> Iterator[str]:
    """Nodes that cannot use the storage, or have other packages than this one."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0)(_look)
    there = [NodeAffinitySchedulingStrategy(node.id, soft=False) for node in cluster]
    with Storage.of(storage).marked() as mark:
        asked = [look.options(scheduling_strategy=node).remote(storage, mark) for node in there]
        ray.wait(asked, num_returns=len(asked), timeout=LOOK_SECONDS)
    here = _versions()
    for node, answer in zip(cluster, asked, strict=True):
        try:
            problem, versions = ray.get(answer, timeout=0)
        except ray.exceptions.RayError as error:
            if node not in alive_nodes(ray):
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
