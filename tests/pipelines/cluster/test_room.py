"""Room on a cluster whose nodes come and go; real ones are in test_coming_nodes.py."""

import threading
import time
from types import SimpleNamespace

import pytest
from ray.tune.search import Searcher

from pipelines.cluster import inspection, jobs
from pipelines.cluster import room as module
from pipelines.cluster.capacity import Node
from pipelines.cluster.inspection import Inspection
from pipelines.cluster.room import Room, WithinRoom, has_room, wait_for_room, watched_room
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.progress import Progress
from pipelines.training.config import Resources


class Given(Searcher):
    """Suggests so many trials."""

    def __init__(self, left: int) -> None:
        super().__init__(metric="objective", mode="min")
        self.left, self.events = left, []

    def suggest(self, trial_id):
        self.left -= 1
        return {"number": self.left} if self.left >= 0 else Searcher.FINISHED

    def on_trial_result(self, trial_id, result):
        self.events.append((trial_id, result))

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.events.append((trial_id, result, error))

    def save(self, checkpoint_path): ...

    def restore(self, checkpoint_path): ...


def test_no_more_trials_are_suggested_than_there_is_room_for_now():
    room = Room(Resources(), jobs=2)
    searcher = WithinRoom(given := Given(5), room)
    assert (searcher.metric, searcher.mode) == ("objective", "min")
    assert [searcher.suggest(name) for name in "abc"] == [{"number": 4}, {"number": 3}, None]
    room.jobs = 3  # a node joined
    assert [searcher.suggest(name) for name in "cd"] == [{"number": 2}, None]
    room.jobs = 0  # and all are gone
    for name in "ab":
        searcher.on_trial_complete(name, None, error=True)
    assert searcher.suggest("d") is None
    searcher.on_trial_result("c", {"tokens": 1})
    searcher.on_trial_complete("c", {"tokens": 2})
    assert searcher.suggest("d") == {"number": 1}  # waits for a node, which Ray is asked for
    assert searcher.suggest("e") is None
    searcher.on_trial_complete("d", {"tokens": 2})
    assert searcher.suggest("e") == {"number": 0}
    searcher.on_trial_complete("e", {"tokens": 2})
    assert searcher.suggest("f") == Searcher.FINISHED
    assert given.events[:3] == [("a", None, True), ("b", None, True), ("c", {"tokens": 1})]


class FakeCluster:
    """Nodes of one CPU each, and what the autoscaler was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes, self.asked, self.withdrawn, self.initialized = 1, [], 0, True
        self.inspection: Inspection | None = None
        monkeypatch.setattr(module, "alive_nodes", self._alive)
        monkeypatch.setattr(module, "last_inspection", lambda: self.inspection)
        monkeypatch.setattr(module, "LOOK_SECONDS", 0.001)
        monkeypatch.setattr(module, "AutoscalerRequest", lambda name, lasts_seconds: self)
        ray = SimpleNamespace(is_initialized=lambda: self.initialized)
        monkeypatch.setitem(module.sys.modules, "ray", ray)
        monkeypatch.setenv("RAY_ADDRESS", "head:1")

    def _alive(self, ray):
        if not self.initialized:
            raise RuntimeError("Ray has ended")
        return [Node("head", 0), *[Node(f"a{n}", 1, id=str(n)) for n in range(self.nodes)]]

    def ask(self, bundles):
        self.asked.append(bundles)

    def withdraw(self):
        self.withdrawn += 1


@pytest.fixture
def cluster(monkeypatch):
    return FakeCluster(monkeypatch)


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_nodes_that_come_and_go_are_counted_and_the_user_is_told(cluster, capsys):
    resources = Resources(cpus_per_worker=1)
    with watched_room(resources, Progress(), name="search", left=lambda: 3) as room:
        assert room.jobs == 1
        until(lambda: cluster.asked)
        cluster.nodes = 2
        until(lambda: room.jobs == 2)
        cluster.nodes = 0
        until(lambda: room.jobs == 0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "  the cluster has room for 2 trainings of 1 x 1 CPU",
        "  the cluster has room for 0 trainings of 1 x 1 CPU",
    ]
    assert all(line.startswith("  waiting for nodes with room for") for line in lines[2:])
    assert cluster.asked == [[{"CPU": 1}] * 3]  # once until it would be forgotten
    assert cluster.withdrawn == 1


def test_ray_train_asks_for_what_runs_itself(cluster):
    cluster.nodes = 4
    left, resources = 5, Resources(workers=2)
    with watched_room(resources, Progress(), name="search", left=lambda: left) as room:
        assert room.jobs == 2
        until(lambda: cluster.asked)
        assert cluster.asked == [[{"CPU": 1}] * 6]
        left = 3
        until(lambda: len(cluster.asked) == 2)
        assert cluster.asked[1] == [{"CPU": 1}] * 2
        left = 2
        until(lambda: len(cluster.asked) == 3)
        assert cluster.asked[2] == []


def test_a_node_that_joins_is_used_once_it_has_passed_and_else_there_is_one_line(
    cluster, monkeypatch, capsys
):
    def problems(storage, nodes, *, bfloat16):
        wrong = [Problem("torch 1.0", "node a2")]
        return {n.id: wrong if n.id == "2" else [] for n in nodes}, {}

    monkeypatch.setattr(inspection, "node_problems", problems)
    cluster.inspection = Inspection("s3://b", bfloat16=False, passed={"", "0"})
    with watched_room(Resources(), Progress(), name="search", left=lambda: 9) as room:
        assert room.jobs == 1
        cluster.nodes = 2
        until(lambda: room.jobs == 2)
        cluster.nodes = 3
        until(lambda: cluster.inspection.refused)
        cluster.nodes = 4
        until(lambda: room.jobs == 3)
    assert has_room(Resources())
    assert cluster.asked
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "  the cluster has room for 2 trainings of 1 x 1 CPU",
        "  a2 (1 CPU) has joined and is not used: node a2: torch 1.0",
        "  the cluster has room for 3 trainings of 1 x 1 CPU",
    ]


def test_no_node_is_asked_for_or_used_where_the_storage_serves_one_machine(cluster, capsys):
    reason = "storage serves one machine only"
    cluster.inspection = Inspection("runs", bfloat16=False, not_shared=reason, passed={"", "0"})
    with watched_room(Resources(), Progress(), name="search", left=lambda: 9) as room:
        cluster.nodes = 2
        until(lambda: cluster.inspection.refused)
        time.sleep(0.01)
        assert room.jobs == 1
    assert not cluster.asked
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == [
        f"  a1 (1 CPU) has joined and is not used: {reason}",
        f"  no more nodes are asked for: {reason}",
    ]


@pytest.mark.parametrize("silent", [False, True])
def test_a_node_without_an_answer_is_inspected_again_and_used_when_it_passes(
    cluster, monkeypatch, capsys, silent
):
    asked = []

    def problems(storage, nodes, *, bfloat16):
        asked.append([node.id for node in nodes])
        problem = Problem("no answer", "storage")
        if len(asked) < 3 and not silent:
            raise ConfigError(problem)
        if len(asked) < 3:
            return {}, {node.id: problem for node in nodes}
        return {node.id: [] for node in nodes}, {}

    monkeypatch.setattr(inspection, "node_problems", problems)
    monkeypatch.setattr(inspection, "AGAIN_SECONDS", 0.01)
    cluster.inspection = Inspection("s3://b", bfloat16=False, passed={"", "0"})
    with watched_room(Resources(), Progress(), name="search") as room:
        cluster.nodes = 2
        until(lambda: room.jobs == 2)
    assert asked == [["1"]] * 3
    assert (cluster.inspection.refused, cluster.inspection.unanswered) == ({}, {})
    assert capsys.readouterr().out.splitlines() == [
        "  a1 (1 CPU) has joined and is not used until it is inspected: storage: no answer",
        "  the cluster has room for 2 trainings of 1 x 1 CPU",
    ]


def test_a_node_that_does_not_answer_holds_up_no_other(cluster, monkeypatch):
    answer = threading.Event()

    def problems(storage, nodes, *, bfloat16):
        if nodes[0].id == "1":
            answer.wait(60)
        return {node.id: [] for node in nodes}, {}

    monkeypatch.setattr(inspection, "node_problems", problems)
    cluster.inspection = known = Inspection("s3://b", bfloat16=False, passed={"", "0"})
    with watched_room(Resources(), Progress(), name="search") as room:
        cluster.nodes = 2
        time.sleep(0.02)
        cluster.nodes = 3
        until(lambda: room.jobs == 2)
        assert known.passed == {"", "0", "2"}
        answer.set()
        until(lambda: room.jobs == 3)


def test_a_trial_of_several_workers_is_given_what_is_known_of_the_nodes(cluster):
    searcher = WithinRoom(Given(2), Room(Resources(workers=2), jobs=2))
    assert searcher.suggest("a") == {"number": 1}  # a cluster of this machine
    cluster.inspection = Inspection("s3://b", bfloat16=False, passed={"0"}, refused={"1": "torch"})
    given = searcher.suggest("b")["inspection"]
    assert given == cluster.inspection
    cluster.inspection.passed.add("2")
    cluster.inspection.refused["3"] = "torch"
    assert (given.passed, given.refused) == ({"0"}, {"1": "torch"})


def test_in_a_trials_process_refused_nodes_are_no_room_and_new_ones_are_inspected(
    cluster, monkeypatch
):
    monkeypatch.delenv("RAY_ADDRESS")  # Ray's processes need none
    resources, given = Resources(workers=2), Inspection("s3://b", bfloat16=False, passed={"0"})
    cluster.nodes, given.refused = 2, {"": "torch", "1": "torch"}
    assert has_room(resources)
    assert not has_room(resources, given)
    passes = lambda storage, nodes, *, bfloat16: ({node.id: [] for node in nodes}, {})  # noqa: E731
    monkeypatch.setattr(inspection, "node_problems", passes)
    cluster.nodes = 3
    wait_for_room(resources, given)
    assert given.passed == {"0", "2"}


@pytest.mark.parametrize(
    ("known", "bundle", "selector"),
    [
        (None, {"CPU": 1}, None),
        (Inspection("s3://b", bfloat16=False, passed={"a", "b", "c"}), {"CPU": 1}, None),
        (
            Inspection("s3://b", bfloat16=False, passed={"a", "c"}, refused={"b": "torch"}),
            {"CPU": 1},
            [{"ray.io/node-id": "!in(b)"}],
        ),
        (
            Inspection("s3://b", bfloat16=False, passed={"a"}),  # others have joined
            {"CPU": 1},
            [{"ray.io/node-id": "!in(b,c)"}],
        ),
        (
            Inspection("runs", bfloat16=False, not_shared="storage"),
            {"CPU": 1, "node:__internal_head__": 0.001},
            None,
        ),
    ],
)
def test_a_trial_is_placed_on_no_node_that_is_not_used(monkeypatch, known, bundle, selector):
    monkeypatch.setattr(inspection, "last_inspection", lambda: known)
    monkeypatch.setattr(
        inspection, "alive_nodes", lambda _: [Node("", 1, id=name) for name in "cba"]
    )
    request = jobs._request(Resources(), {"number": 0})
    assert request.bundles == [bundle]
    assert request._kwargs.get("bundle_label_selector") == selector


def test_a_cluster_that_ends_ends_the_watch_and_no_more(cluster):
    before = threading.active_count()
    with watched_room(Resources(), Progress(), name="search"):
        cluster.initialized = False
        until(lambda: threading.active_count() == before)


def test_an_error_is_one_line_of_its_kind_and_the_nodes_are_counted_on(
    cluster, monkeypatch, capsys
):
    def fail(*_):
        failed.append(cluster.nodes)
        raise ConnectionError("the head restarts\nas its log has it")

    failed: list[int] = []
    with monkeypatch.context() as patch, watched_room(Resources(), Progress(), name="s") as room:
        patch.setattr(module, "alive_nodes", fail)
        until(lambda: len(failed) > 2)
        patch.setattr(module, "alive_nodes", cluster._alive)
        patch.setattr(cluster, "ask", fail)
        cluster.nodes = 0  # the autoscaler, of which one cannot be asked for, keeps none uncounted
        until(lambda: room.jobs == 0 and failed[-1] == 0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "  the nodes are looked at again: the head restarts",
        "  the cluster has room for 0 trainings of 1 x 1 CPU",
    ]
    assert sum("looked at again" in line for line in lines) == 1


def test_nodes_of_this_machine_are_counted_once_and_never_waited_for(cluster, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS")
    before = threading.active_count()
    with watched_room(Resources(), Progress(), name="search") as room:
        assert threading.active_count() == before
    assert room.jobs == 1
    cluster.nodes = 0
    assert has_room(Resources())
    wait_for_room(Resources())


def test_a_cluster_without_room_is_waited_for(cluster):
    cluster.nodes = 0
    assert not has_room(Resources())
    thread = threading.Thread(target=wait_for_room, args=(Resources(),), daemon=True)
    thread.start()
    cluster.nodes = 1
    thread.join(timeout=60)
    assert not thread.is_alive()
