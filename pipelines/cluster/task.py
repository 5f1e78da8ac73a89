"""A function in a process of its own on a node of the cluster: what a study's probe times."""

from collections.abc import Callable
from typing import Any, TypeVar

import ray

from pipelines.cluster.capacity import require_capacity
from pipelines.cluster.connection import cluster_address, connect
from pipelines.cluster.inspection import last_inspection, worker_place
from pipelines.cluster.room import wait_for_room
from pipelines.compat.ray import HEAD_NODE, last_line
from pipelines.console.errors import PipelineError
from pipelines.training.config import Resources

T = TypeVar("T")


def run_task(work: Callable[..., T], *args: Any, resources: Resources, key: str) -> T:
    """Call a function in a process that ends with it, on a node with the resources of a worker;
    returns its result.

    A cluster at RAY_ADDRESS without room for it is waited for, and a node that goes is replaced by
    another; the process is placed where a trial of one worker would be.

    Args:
        work: A function of a module of this project.
        args: What it is called with.
        resources: Those of one of its workers are reserved.
        key: Their configuration key, for errors.

    Raises PipelineError if it fails or its process dies.
    """
    cluster, one = connect(), resources.model_copy(update={"workers": 1})
    if not cluster_address():
        require_capacity(cluster, one, key)
    while True:
        wait_for_room(one, last_inspection())
        task = _remote(work, one).remote(*args)
        try:
            found: T = ray.get(task)
        except ray.exceptions.NodeDiedError:
            continue
        except ray.exceptions.RayError as error:
            raise PipelineError(f"{work.__name__}: {last_line(error)}") from error
        except BaseException:
            ray.cancel(task, force=True)
            raise
        return found


def _remote(work: Callable[..., Any], resources: Resources) -> Any:
    bundle, selector = worker_place(resources)
    return ray.remote(
        num_cpus=bundle["CPU"],
        num_gpus=bundle.get("GPU", 0),
        resources={HEAD_NODE: bundle[HEAD_NODE]} if HEAD_NODE in bundle else None,
        label_selector=selector or None,
        max_calls=1,
        max_retries=0,
    )(work)
