"""What a cluster offers, and whether its nodes have what the configuration needs in common.

Used by the commands before anything starts: a difference between nodes is found in seconds.
"""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

import torch

from pipelines.cluster.capacity import Cluster, Node, worker_bundle
from pipelines.cluster.connection import (
    alive_nodes,
    cluster_address,
    connect,
    is_ray_job,
    machine_cpus,
    short_session_folder,
)
from pipelines.compat.ray import NODE_ID_LABEL, last_line
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import one_line
from pipelines.storage.location import Storage
from pipelines.tracking.schema import COMMIT_VARIABLE
from pipelines.tracking.uri import tracking_uri
from pipelines.training.config import Resources
from pipelines.training.device import multiplies_bfloat16

RAY_GPU_TYPES = ("cuda", "xpu")
"""PyTorch's names of the devices that Ray calls GPUs."""
INSPECTION_SECONDS = 120
"""Limit for the answer of a node: its first process imports torch."""
AGAIN_SECONDS = 60
"""Pause until a node that could not be inspected is inspected again."""
PACKAGES = ("ray", "torch", "numpy", "safetensors", "pydantic")
"""Packages of which every node needs the same version: their objects travel between nodes."""
_last: list["Inspection"] = []
"""The one of this process's command, on a cluster at RAY_ADDRESS."""


@dataclass
class Inspection:
    """What a command needs of every node of its cluster, and which nodes have it."""

    storage: str
    bfloat16: bool
    not_shared: str = ""
    """Why no further node can be used: the first of what serves one machine only."""
    passed: set[str] = field(default_factory=set)
    """Ids of the nodes that can be used."""
    refused: dict[str, str] = field(default_factory=dict)
    """By the id of a node that cannot, why: by its own answer, which stays the same."""
    unanswered: dict[str, str] = field(default_factory=dict)
    """By the id of a node of which there is no answer, why; it is inspected again."""
    due_at: dict[str, float] = field(default_factory=dict)
    """By the id of such a node, from when on, as `time.time` counts."""

    def usable(self, nodes: Cluster) -> Cluster:
        """Those of the nodes that have passed."""
        return [node for node in nodes if node.id in self.passed]

    def selector(self, nodes: Cluster) -> dict[str, str]:
        """Ray's label selector that excludes those of the nodes that have not passed.

        It names the excluded ones, or what waits would not be placed on nodes that replace others.
        """
        others = sorted({node.id for node in nodes} - self.passed)
        return {NODE_ID_LABEL: f"!in({','.join(others)})"} if others else {}

    def due(self, nodes: Cluster) -> Cluster:
        """Those of the nodes that are to be inspected now."""
        known, now = {*self.passed, *self.refused}, time.time()
        return [
            node for node in nodes if node.id not in known and self.due_at.get(node.id, 0) <= now
        ]

    def inspect(self, nodes: Cluster) -> None:
        """Sort nodes that have joined; one that has gone meanwhile is in no group.

        An error here, such as of the storage, is no answer of theirs, nor is a timeout.
        """
        if self.not_shared:
            self.refused |= {node.id: self.not_shared for node in nodes}
            return
        try:
            found, silent = node_problems(self.storage, nodes, bfloat16=self.bfloat16)
        except Exception as error:
            found, silent = {}, {node.id: Problem(one_line(str(error))) for node in nodes}
        self.refused |= {name: str(problems[0]) for name, problems in found.items() if problems}
        self.passed |= {name for name, problems in found.items() if not problems}
        self.due_at |= dict.fromkeys(silent, time.time() + AGAIN_SECONDS)
        self.unanswered |= {name: str(problem) for name, problem in silent.items()}
        for name in found:
            self.unanswered.pop(name, None)

    def copy(self) -> "Inspection":
        """What is known now, for another process."""
        return replace(
            self,
            passed=set(self.passed),
            refused=dict(self.refused),
            unanswered=dict(self.unanswered),
            due_at=dict(self.due_at),
        )


def last_inspection() -> Inspection | None:
    """That of the command's `inspect_cluster`; None for a cluster of this machine."""
    return _last[-1] if _last else None


def worker_place(resources: Resources) -> tuple[dict[str, float], dict[str, str]]:
    """What Ray reserves for one worker, and the label selector of its node: of those that have
    passed the command's inspection, or the head node if no further one can be used."""
    inspection = last_inspection()
    on_head = inspection is not None and bool(inspection.not_shared)
    bundle = worker_bundle(resources, on_head=on_head)
    if inspection is None or on_head:
        return bundle, {}
    return bundle, inspection.selector(alive_nodes(sys.modules["ray"]))


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
    _last.clear()
    if is_ray_job():
        _refuse(_missing_in_job(storage))
    if not cluster_address():
        short_session_folder()
        found = torch.accelerator.current_accelerator(check_available=True)
        gpus = torch.accelerator.device_count() if found and found.type in RAY_GPU_TYPES else 0
        return [Node("this machine", machine_cpus(), gpus)]
    cluster = connect()
    local, own = list(_not_shared(storage, len(cluster))), {node.id for node in cluster}
    if len(cluster) > 1:
        _refuse(iter(local))
        wrong, silent = node_problems(storage, cluster, bfloat16=bfloat16)
        _refuse(problem for problems in [*wrong.values(), silent.values()] for problem in problems)
        # without nodes that were found dead meanwhile, or have joined
        cluster = [node for node in connect() if node.id in own]
    reason = f"{local[0].key} serves one machine only" if local else ""
    _last.append(Inspection(storage, bfloat16, reason, own))
    return cluster


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


def node_problems(
    storage: str, cluster: Cluster, *, bfloat16: bool
) -> tuple[dict[str, list[Problem]], dict[str, Problem]]:
    """By id, why nodes cannot use the storage, have other packages than this one, or lack bfloat16;
    and why others have not answered, by their ids.

    One that is no longer alive is left out. Raises ConfigError if this process cannot use the
    storage.
    """
    import ray

    found, silent = {}, {}
    for node, answer in _inspect_nodes(ray, storage, cluster):
        try:
            problem, versions, multiplies = ray.get(answer, timeout=0)
        except ray.exceptions.RayError as error:
            if isinstance(error, ray.exceptions.GetTimeoutError):
                ray.cancel(answer, force=True)  # or its process would stay, and others with it
            if node in alive_nodes(ray):
                message = f"cannot be used: {last_line(error)}"
                silent[node.id] = Problem(message, f"node {node.address}")
            continue
        wrong = _wrong(problem, versions, can_bfloat16=multiplies or not bfloat16)
        found[node.id] = [Problem(message, f"node {node.address}") for message in wrong]
    return found, silent


def _wrong(
    storage_problem: str | None, versions: dict[str, str], *, can_bfloat16: bool
) -> Iterator[str]:
    """What is wrong with a node, by what it has answered."""
    if storage_problem:
        yield storage_problem
    if not can_bfloat16:
        yield (
            "its processor has no instructions for bfloat16, in which all would train; "
            "expected train.precision=float32, or a cluster without this node"
        )
    for name, own in _versions().items():
        if versions[name] != own:
            yield f"{name} {versions[name]}; expected {own}, as here, on every node"


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
