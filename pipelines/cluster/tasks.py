"""One function call in a process of its own, on a node with the resources of a worker.

Used by a study's stage probe.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from pipelines.cluster.capacity import require_capacity
from pipelines.cluster.connection import connect
from pipelines.compat.ray import last_line
from pipelines.console.errors import PipelineError
from pipelines.training.config import Resources

T = TypeVar("T")


def run_task(work: Callable[..., T], *args: Any, resources: Resources, key: str) -> T:
    """Call a function with these arguments in a process that ends with it; returns its result.

    Args:
        work: A function of a module of this project.
        args: What it is called with.
        resources: Those of one of its workers are reserved.
        key: Their configuration key, for errors.

    Raises PipelineError if it fails or its process dies.
    """
    require_capacity(connect(), resources, key)
    import ray

    remote = ray.remote(
        num_cpus=resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker,
        max_calls=1,
        max_retries=0,
    )(work)
    task = remote.remote(*args)
    try:
        found: T = ray.get(task)
    except ray.exceptions.RayError as error:
        raise PipelineError(f"{work.__name__}: {last_line(error)}") from error
    except BaseException:
        ray.cancel(task, force=True)
        raise
    return found
