"""How many workers and jobs fit the nodes of a cluster at once.

Used by the commands to refuse what cannot run, and by the search to limit concurrent trials.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.compat.ray import HEAD_NODE
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import counted
from pipelines.training.config import Resources

ROUNDING = 1e-9
HEAD_NODE_SHARE = 0.001
"""Share of the head node requested for what may be placed there only."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, with the resources that Ray may use."""

    address: str
    cpus: float
    gpus: float = 0
    id: str = ""
    """Ray's."""

    def __str__(self) -> str:
        gpus = f", {counted(self.gpus, 'GPU')}" if self.gpus else ""
        return f"{self.address} ({counted(self.cpus, 'CPU')}{gpus})"

    def worker_capacity(self, resources: Resources) -> int:
        """How many workers of these resources fit: a worker's CPUs are of one node, and its GPU is
        one or a part of one, or several whole ones."""
        by_cpus = int(self.cpus // resources.cpus_per_worker)
        each = resources.gpus_per_worker
        if not each:
            return by_cpus
        if each < 1:
            return min(by_cpus, int(self.gpus) * int(1 / each + ROUNDING))
        return min(by_cpus, int(self.gpus // each))


Cluster = Sequence[Node]


def worker_bundle(resources: Resources, *, on_head: bool = False) -> dict[str, float]:
    """What Ray reserves for one worker; `on_head`: which must be on the head node."""
    bundle: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        bundle["GPU"] = resources.gpus_per_worker
    if on_head:
        bundle[HEAD_NODE] = HEAD_NODE_SHARE
    return bundle


def describe(resources: Resources) -> str:
    """Workers, CPUs and GPUs of one job, for people."""
    return f"{resources.workers_text} x {_of_worker(resources)}"


def _of_worker(resources: Resources) -> str:
    gpus = f" and {counted(resources.gpus_per_worker, 'GPU')}" if resources.gpus_per_worker else ""
    return f"{counted(resources.cpus_per_worker, 'CPU')}{gpus}"


def worker_capacity(cluster: Cluster, resources: Resources) -> int:
    """How many workers of these resources fit the cluster at once."""
    return sum(node.worker_capacity(resources) for node in cluster)


def max_concurrent_jobs(cluster: Cluster, resources: Resources) -> int:
    """How many jobs of these resources fit the cluster at once, each with its smallest number of
    workers.

    A job's workers may be on several nodes; they are all placed at once or not at all.
    """
    return worker_capacity(cluster, resources) // resources.min_workers


def require_capacity(cluster: Cluster, resources: Resources, key: str) -> None:
    """Raise ConfigError if one job of these resources, given by `key`, does not fit the cluster."""
    if max_concurrent_jobs(cluster, resources) >= 1:
        return
    message = (
        f"workers={resources.min_workers} of {_of_worker(resources)} each; "
        f"there is room for {worker_capacity(cluster, resources)} of them on "
        f"{', '.join(map(str, cluster))}"
    )
    raise ConfigError(Problem(message, key))
