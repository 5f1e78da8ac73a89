"""Which GPUs Ray gives the processes of trainings, on a machine that pretends to have two."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from pipelines.cluster.capacity import Node, max_concurrent_jobs, worker_bundle
from pipelines.compat import ray as compat
from pipelines.training.config import Resources

NODE = Node("this machine", 6, 2)


class Process:
    """What a trial's actor is, to Ray."""

    def visible(self) -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.fixture(scope="module", autouse=True)
def two_gpus() -> Iterator[None]:
    """Ray counts GPUs, and looks at none."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**compat.ENVIRONMENT, **compat.LOCAL_ENVIRONMENT}.items():
            patch.setenv(name, value)
        options = {"include_dashboard": False, "log_to_driver": False}
        ray.init("local", num_cpus=int(NODE.cpus), num_gpus=int(NODE.gpus), **options)
        try:
            yield
        finally:
            ray.shutdown()


def start(resources: Resources) -> Any:
    """A process with what Ray reserves for a worker."""
    bundle = worker_bundle(resources)
    options = {"num_cpus": bundle["CPU"], "num_gpus": bundle.get("GPU", 0)}
    return ray.remote(Process).options(**options).remote()  # type: ignore[attr-defined]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("gpus", "seen"),
    [
        (0.4, {"0": 2, "1": 2}),  # two on each, and the rest of each is unused
        (1, {"0": 1, "1": 1}),
        (2, {"0,1": 1}),
    ],
)
def test_a_gpu_is_shared_by_as_many_as_the_plan_counts_and_seen_by_these_only(gpus, seen):
    resources = Resources(gpus_per_worker=gpus)
    fitting = max_concurrent_jobs([NODE], resources)
    processes = [start(resources) for _ in range(fitting)]
    answers = [process.visible.remote() for process in processes]
    assert Counter(ray.get(answers, timeout=60)) == seen
    waiting = start(resources)
    answer = waiting.visible.remote()
    assert ray.wait([answer], timeout=0.5)[0] == []
    ray.kill(processes[0])
    assert ray.get(answer) in seen
    for process in (*processes, waiting):
        ray.kill(process)


@pytest.mark.ray
def test_a_training_without_a_gpu_sees_none():
    process = start(Resources())
    assert ray.get(process.visible.remote()) == ""
    ray.kill(process)
