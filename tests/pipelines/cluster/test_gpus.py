"""Which GPUs Ray gives the processes of trainings, on a node that pretends to have two."""

import os
from collections import Counter
from typing import Any

import pytest
import ray

from pipelines.cluster.capacity import Node, max_concurrent_jobs, worker_bundle
from pipelines.training.config import Resources

NODE = Node("head", 6, 2)
"""The one of `two_nodes` that has anything."""
pytestmark = [pytest.mark.extended, pytest.mark.usefixtures("connected")]


def process() -> type:
    """What a trial's actor is, to Ray, which sends a class of a function as it is: a process that
    has it need not import this module."""

    class Process:
        def visible(self) -> str | None:
            return os.environ.get("CUDA_VISIBLE_DEVICES")

    return Process


def start(resources: Resources) -> Any:
    """A process with what Ray reserves for a worker."""
    bundle = worker_bundle(resources)
    options = {"num_cpus": bundle["CPU"], "num_gpus": bundle.get("GPU", 0)}
    return ray.remote(process()).options(**options).remote()  # type: ignore[attr-defined]


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


def test_a_training_without_a_gpu_sees_none():
    process = start(Resources())
    assert ray.get(process.visible.remote()) == ""
    ray.kill(process)
