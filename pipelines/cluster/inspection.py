"""What a cluster offers, and whether its nodes have what the configuration needs in common.

Used by the commands before anything starts: a difference between nodes is found in seconds.
"""

import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

import torch

from pipelines.cluster.capacity import Cluster, Node
from pipelines.cluster.connection import (
    alive_nodes,
    cluster_address,
    connect,
    is_ray_job,
    machine_cpus,
    short_session_folder,
)
from pipelines.compat.ray import last_line
from pipelines.console.errors import ConfigError, Problem
from pipelines.storage.location import Storage
from pipelines.tracking.schema import COMMIT_VARIABLE
from pipelines.tracking.uri import tracking_uri
from pipelines.training.device import multiplies_bfloat16

RAY_GPU_TYPES = ("cuda", "xpu")
"""PyTorch's names of the devices that Ray calls GPUs."""
INSPECTION_SECONDS = 120
"""Limit for the answer of a node: its first process imports torch."""
PACKAGES = ("ray", "torch", "numpy", "safetensors", "pydantic")
"""Packages of which every node needs the same version: their objects travel between nodes."""


def inspect_cluster(storage: str, *, bfloat16: bool = False) -> Cluster:
    """The nodes that `connect` would return, without starting Ray on this machine.

    Args:
        storage: The configured storage, which all nodes must reach.
        bfloat16: Whether the processor of every node must multiply it.

    Raises:
        ConfigError: If there are several nodes without a common tracking store, storage or set of
            packages, if a `ray job submit` does not give tracking store, storage and commit, or if
            a Ray of this machine could not have its sockets in RAY_TMPDIR.

    """
    if is_ray_job():
        _refuse(_missing_in_job(storage))
    if not cluster_address():
        short_session_folder()
        found = torch.accelerator.current_accelerator(check_available=True)
        gpus = torch.accelerator.device_count() if found and found.type in RAY_GPU_TYPES else 0
        return [Node("this machine", machine_cpus(), gpus)]
    cluster = connect()
    if len(cluster) == 1:
        return cluster
    _refuse(_not_shared(storage, len(cluster)))
    _refuse(_differences(storage, cluster, bfloat16=bfloat16))
    return connect()  # without nodes that were found dead meanwhile


def _missing_in_job(storage: str) -> Iterator[Problem]:
    """What a Ray job must be given, because its working directory is a temporary copy."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        message = "expected in a Ray job, whose working directory is discarded"
        yield Problem(message, "MLFLOW_TRACKING_URI")
    if Storage.of(storage).is_local and not Path(storage).is_absolute():
        message = (
            f"expected a URI or an absolute path in a Ray job, got {storage}: "
            "its working directory is discarded"
        )
        yield Problem(message, "storage")
    if not os.environ.get(COMMIT_VARIABLE):
        yield Problem(
            "expected in a Ray job, which has no .git: the commit submitted", COMMIT_VARIABLE
        )


def _not_shared(storage: str, nodes: int) -> Iterator[Problem]:
    """Tracking store and storage that serve one machine only."""
    if (uri := tracking_uri()).startswith("sqlite:"):
        message = (
            f"a file serves one machine, the cluster has {nodes}; "
            "start `mlflow server` on a database and set MLFLOW_TRACKING_URI=http://HOST:PORT"
        )
        yield Problem(message, f"MLFLOW_TRACKING_URI={uri}")
    if Storage.of(storage).is_local:
        message = (
            f"{storage} is a folder of one machine, the cluster has {nodes}; "
            "expected storage=s3://BUCKET/PATH, or storage=file:///PATH of a folder that every "
            "node has mounted"
        )
        yield Problem(message, "storage")


def _differences(storage: str, cluster: Cluster, *, bfloat16: bool) -> Iterator[Problem]:
    """Nodes that cannot use the storage, have other packages than this one, or lack bfloat16."""
    import ray

    own = _versions()
    for node, answer in _inspect_nodes(ray, storage, cluster):
        where = f"node {node.address}"
        try:
            problem, versions, multiplies = ray.get(answer, timeout=0)
        except ray.exceptions.RayError as error:
            if node in alive_nodes(ray):
                yield Problem(f"cannot be used: {last_line(error)}", where)
            continue
        if problem:
            yield Problem(problem, where)
        if bfloat16 and not multiplies:
            message = (
                "its processor has no instructions for bfloat16, in which all would train; "
                "expected train.precision=float32, or a cluster without this node"
            )
            yield Problem(message, where)
        for name in own:
            if versions[name] != own[name]:
                expected = f"expected {own[name]}, as here, on every node"
                yield Problem(f"{name} {versions[name]}; {expected}", where)


def _inspect_nodes(ray: Any, storage: str, cluster: Cluster) -> list[tuple[Node, Any]]:
    """Each node with the reference to the result of `_inspect_node` there."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    inspect = ray.remote(num_cpus=0)(_inspect_node)
    there = [NodeAffinitySchedulingStrategy(node.id, soft=False) for node in cluster]
    with Storage.of(storage).write_sentinel() as mark:
        answers = [
            inspect.options(scheduling_strategy=node).remote(storage, mark) for node in there
        ]
        ray.wait(answers, num_returns=len(answers), timeout=INSPECTION_SECONDS)
    return list(zip(cluster, answers, strict=True))


def _inspect_node(storage: str, mark: str) -> tuple[str | None, dict[str, str], bool]:
    """On a node: what is wrong with its access to the storage, its packages' versions, and whether
    its processor multiplies bfloat16."""
    problem = None
    try:
        Storage.of(storage).probe(mark)
    except ConfigError as error:
        problem = str(error)
    return problem, _versions(), multiplies_bfloat16(torch.device("cpu"))


def _versions() -> dict[str, str]:
    found = {"Python": python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def _refuse(problems: Iterator[Problem]) -> None:
    """Raise ConfigError with all of the problems, if there are any."""
    if found := list(problems):
        raise ConfigError(*found)
