"""What a command finds out about nodes before anything starts, without Ray."""

from types import SimpleNamespace

import pytest
import ray

from pipelines.cluster import inspection as module
from pipelines.cluster.capacity import Node, require_capacity
from pipelines.cluster.inspection import inspect_cluster, last_inspection
from pipelines.console.errors import ConfigError, Problem
from pipelines.training.config import Resources


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No cluster, no job and no accelerator."""
    for name in ("RAY_ADDRESS", module.COMMIT_VARIABLE, "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "is_ray_job", lambda: False)
    monkeypatch.setattr(module, "_last", [])
    accelerator(monkeypatch, None)


def accelerator(monkeypatch, kind: str | None) -> None:
    found = SimpleNamespace(type=kind) if kind else None
    monkeypatch.setattr(module.torch.accelerator, "current_accelerator", lambda **_: found)
    monkeypatch.setattr(module.torch.accelerator, "device_count", lambda: 2)


@pytest.mark.parametrize(("kind", "gpus"), [(None, 0), ("cuda", 2), ("xpu", 2), ("mps", 0)])
def test_without_a_cluster_there_is_this_machine_with_what_ray_calls_gpus(monkeypatch, kind, gpus):
    accelerator(monkeypatch, kind)
    monkeypatch.setattr(module, "machine_cpus", lambda: 6)
    assert inspect_cluster("runs") == [Node("this machine", 6, gpus)]


def keys(error: ConfigError) -> list[str]:
    return [problem.key for problem in error.problems]


def test_a_job_needs_store_storage_and_commit(monkeypatch):
    monkeypatch.setattr(module, "is_ray_job", lambda: True)
    with pytest.raises(ConfigError) as error:
        inspect_cluster("runs")
    assert keys(error.value) == ["MLFLOW_TRACKING_URI", "storage", module.COMMIT_VARIABLE]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://store:5000")
    monkeypatch.setenv(module.COMMIT_VARIABLE, "c0ffee")
    for storage in ("/mounted/runs", "s3://bucket/runs"):
        assert inspect_cluster(storage)[0].address == "this machine"


@pytest.fixture
def several(monkeypatch):
    """A cluster of these nodes at RAY_ADDRESS."""
    nodes = [Node("a", 4, id="1"), Node("b", 4, id="2")]
    monkeypatch.setenv("RAY_ADDRESS", "a:1")
    monkeypatch.setattr(module, "connect", lambda: list(nodes))
    monkeypatch.setattr(module, "alive_nodes", lambda _: list(nodes))
    return nodes


def test_one_node_needs_nothing_in_common_and_no_other_can_join_it(several, monkeypatch):
    (_, other), several[1:] = several[:], []
    assert inspect_cluster("runs") == several
    found = last_inspection()
    found.inspect([other])
    assert (found.passed, found.refused) == ({"1"}, {"2": found.not_shared})
    assert found.not_shared.startswith("MLFLOW_TRACKING_URI=sqlite:///")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://store:5000")
    inspect_cluster("runs")
    assert last_inspection().not_shared == "storage serves one machine only"


def test_nodes_that_join_a_cluster_with_a_common_storage_are_inspected(several, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://store:5000")
    (_, other), several[1:] = several[:], []
    assert inspect_cluster("s3://bucket/runs", bfloat16=True) == several
    found, gone = last_inspection(), Node("c", 4, id="3")
    wrong = [Problem("torch 1.0", "node b"), Problem("no bfloat16", "node b")]

    def problems(storage: str, nodes: list[Node], *, bfloat16: bool) -> tuple[dict, dict]:
        assert (storage, bfloat16) == ("s3://bucket/runs", True)
        return {node.id: answers[node.id] for node in nodes if node != gone}, {}

    answers = {"2": wrong, "4": []}
    monkeypatch.setattr(module, "node_problems", problems)
    found.inspect([other, gone, Node("d", 4, id="4")])
    assert (found.passed, found.refused) == ({"1", "4"}, {"2": "node b: torch 1.0"})
    assert found.usable([*several, other, gone]) == several
    monkeypatch.delenv("RAY_ADDRESS")
    inspect_cluster("runs")
    assert last_inspection() is None


def test_several_nodes_need_a_common_store_and_storage(several, monkeypatch):
    monkeypatch.setattr(module, "node_problems", lambda *_, **__: ({}, {}))
    with pytest.raises(ConfigError, match="the cluster has 2") as error:
        inspect_cluster("runs")
    tracking, storage = keys(error.value)
    assert tracking.startswith("MLFLOW_TRACKING_URI=sqlite:///")
    assert storage == "storage"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://store:5000")
    with pytest.raises(ConfigError) as error:
        inspect_cluster("runs")
    assert keys(error.value) == ["storage"]
    assert inspect_cluster("s3://bucket/runs") == several


def problems_of(nodes: list[Node], *, bfloat16: bool = False) -> list[str]:
    found, silent = module.node_problems("s3://b", nodes, bfloat16=bfloat16)
    return [str(one) for problems in [*found.values(), silent.values()] for one in problems]


def test_nodes_that_differ_or_cannot_be_used_are_named(several, monkeypatch):
    own = {"Python": "3.11", "torch": "2.0"}
    several.append(Node("c", 4, id="3"))
    dead = Node("d", 4, id="4")
    answers = {
        "a": (None, own, True),
        "b": ("storage: no", own | {"torch": "1.0"}, False),
        "c": ray.exceptions.RayError("first\nlast"),
        "d": ray.exceptions.RayError("gone"),
    }

    def get(answer, *, timeout):
        assert timeout == 0
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(module, "_versions", lambda: own)
    asked = [(node, answers[node.address]) for node in (*several, dead)]
    monkeypatch.setattr(module, "_inspect_nodes", lambda *_: asked)
    found = problems_of(several)
    expected = [
        "node b: storage: no",
        "node b: torch 1.0; expected 2.0, as here, on every node",
        "node c: cannot be used: last",
    ]
    assert found == expected
    (_, more, *_) = problems_of(several, bfloat16=True)
    found, silent = module.node_problems("s3://b", several, bfloat16=False)
    assert (found.keys(), silent.keys()) == ({"1", "2"}, {"3"})
    monkeypatch.setattr(module, "connect", lambda: list(several))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://store:5000")
    with pytest.raises(ConfigError) as error:  # at the start neither is used
        inspect_cluster("s3://b")
    assert [str(problem) for problem in error.value.problems] == expected
    assert more.startswith("node b: its processor has no instructions for bfloat16")
    assert "train.precision=float32" in more and "\n" not in more


def test_a_node_that_does_not_answer_in_time_is_asked_no_longer(several, monkeypatch):
    def get(answer, *, timeout):
        raise ray.exceptions.GetTimeoutError("Get timed out")

    cancelled = []
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "cancel", lambda answer, *, force: cancelled.append((answer, force)))
    monkeypatch.setattr(module, "_inspect_nodes", lambda *_: [(several[1], "answer")])
    found, silent = module.node_problems("s3://b", several[1:], bfloat16=False)
    assert (found, str(silent["2"])) == ({}, "node b: cannot be used: Get timed out")
    assert cancelled == [("answer", True)]


def test_a_package_that_is_missing_has_a_version_all_the_same(monkeypatch):
    def version(name: str) -> str:
        if name == "torch":
            raise module.PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(module, "version", version)
    found = module._versions()
    assert (found["torch"], found["ray"]) == ("missing", "1.0")
    assert list(found) == ["Python", *module.PACKAGES]


def test_as_many_jobs_as_fit_is_enough(monkeypatch):
    nodes = [Node("a", 2, 1)]
    require_capacity(nodes, Resources(workers=2), "resources")
    with pytest.raises(ConfigError, match=r"workers=3 of 1 CPU each; there is room for 2 of them"):
        require_capacity(nodes, Resources(workers=3), "resources")
    with pytest.raises(ConfigError, match=r"workers=2 of 1 CPU and 1 GPU each; there is room"):
        require_capacity(nodes, Resources(workers=2, gpus_per_worker=1), "resources")
