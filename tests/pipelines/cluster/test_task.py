"""A function in a process of its own on a node of a real cluster, and where Ray may place it."""

import os

import pytest
import ray

from pipelines.cluster import inspection, task
from pipelines.cluster.capacity import Node
from pipelines.cluster.inspection import Inspection
from pipelines.console.errors import PipelineError
from pipelines.training.config import Resources

RESOURCES = Resources(workers=9, cpus_per_worker=2)


@pytest.fixture
def places(monkeypatch, connected, two_nodes) -> list[dict]:
    """The inspections of the command, of which the last one counts; this process is a driver."""
    monkeypatch.setenv("RAY_ADDRESS", two_nodes)
    monkeypatch.setattr(inspection, "_last", [])
    return inspection._last


def run(work, *args):
    return task.run_task(work, *args, resources=RESOURCES, key="fit.resources")


def test_a_function_runs_in_a_process_of_its_own_or_is_an_error_with_its_name(places):
    assert run(lambda number: (number, os.getpid()), 7) != (7, os.getpid())

    def timed() -> None:
        raise ValueError("no\nsteps")

    with pytest.raises(PipelineError, match=r"^timed: .*steps"):
        run(timed)


def test_a_node_that_goes_is_replaced_by_another_when_there_is_one(places, monkeypatch):
    lost, waited, get = [1, 2], [], ray.get
    monkeypatch.setattr(task, "wait_for_room", lambda one, _: waited.append(one.workers))

    def answers(remote):
        if lost:
            raise ray.exceptions.NodeDiedError(str(lost.pop()))
        return get(remote)

    monkeypatch.setattr(ray, "get", answers)
    assert run(lambda: 5) == 5
    assert waited == [1, 1, 1]


def test_it_is_placed_where_a_trial_of_one_worker_would_be(places, monkeypatch):
    def options() -> tuple:
        found = task._remote(lambda: None, RESOURCES)._default_options
        return found["num_cpus"], found["resources"], found["label_selector"]

    monkeypatch.setattr(inspection, "alive_nodes", lambda _: [Node("", 2, id=n) for n in "ab"])
    assert options() == (2, None, None)
    places.append(Inspection("s3://b", bfloat16=False, passed={"a"}))
    assert options() == (2, None, {"ray.io/node-id": "!in(b)"})
    places.append(Inspection("runs", bfloat16=False, not_shared="storage"))
    assert options() == (2, {"node:__internal_head__": 0.001}, None)
