"""Training with several workers, without Ray: its parts are made up."""

import asyncio
import os
import re
import signal
import threading
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from pydantic import SecretStr

from pipelines.cluster import connection, mailbox, workers
from pipelines.cluster.capacity import Node
from pipelines.cluster.inspection import Inspection
from pipelines.cluster.mailbox import next_message
from pipelines.compat.ray import START_TIMEOUT
from pipelines.console.errors import ConfigError, DivergedError, PipelineError, StorageError
from pipelines.storage.project import ROOT

KEY = "0123456789abcdef" * 2
Mailbox = mailbox.Mailbox.__ray_metadata__.modified_class


def test_a_sender_waits_for_the_readers_answer():
    async def exchange() -> list[Any]:
        box = Mailbox()
        first = asyncio.ensure_future(box.post("a"))
        found = [await box.take(), first.done()]
        await box.answer(True)
        await box.answer(False)  # it has been answered
        return [*found, await first]

    assert asyncio.run(exchange()) == ["a", False, True]


def test_a_box_that_is_stopped_answers_no_to_all_now_and_later():
    async def exchange() -> list[Any]:
        box = Mailbox()
        await box.answer(True)  # nothing was taken yet
        sent = [asyncio.ensure_future(box.post(number)) for number in range(3)]
        assert await box.take() == 0
        await box.stop()
        return [*await asyncio.gather(*sent), await box.post("later")]

    assert asyncio.run(asyncio.wait_for(exchange(), 10)) == 4 * [False]


@pytest.mark.parametrize(("waits", "expected"), [(0, "row"), (3, "row"), (None, None)])
def test_the_next_message_is_waited_for_while_the_workers_train(monkeypatch, waits, expected):
    fit: Future[None] = Future()
    asked = []

    def wait(references, *, timeout):
        assert (references, timeout) == (["reference"], 0.2)
        asked.append(timeout)
        if waits is None and len(asked) == 2:
            fit.set_result(None)
        return (references, []) if waits is not None and len(asked) > waits else ([], references)

    monkeypatch.setattr(mailbox.ray, "wait", wait)
    monkeypatch.setattr(mailbox.ray, "get", {"reference": "row"}.get)
    box = SimpleNamespace(take=SimpleNamespace(remote=lambda: "reference"))
    assert next_message(box, fit) == expected
    assert len(asked) == (2 if waits is None else waits + 1)


class Remote:
    """An actor: each of its methods returns what it was called with, or the answer."""

    def __init__(self, answer: Any = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._answer = answer

    def __getattr__(self, name: str) -> Any:
        def remote(*given: Any) -> Any:
            self.calls.append((name, *given))
            return self._answer

        return SimpleNamespace(remote=remote)


@pytest.fixture
def fitted(monkeypatch, run) -> Any:
    """Training whose workers send these messages, and end with this error."""
    found = SimpleNamespace(messages=[], error=None, box=Remote(), shown=[], alive=True)

    def fit() -> None:
        if found.error:
            raise found.error

    options = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: found.box))
    context = SimpleNamespace(get_node_id=lambda: "0" * 56)
    monkeypatch.setattr(workers, "Mailbox", options)
    found.tasks = []

    def trainer(*given: Any) -> SimpleNamespace:
        found.tasks.append(given)
        return SimpleNamespace(fit=fit)

    monkeypatch.setattr(workers, "_trainer", trainer)
    monkeypatch.setattr(workers, "next_message", lambda *_: next(iter_messages, None))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    monkeypatch.setattr(ray, "is_initialized", lambda: found.alive)
    monkeypatch.setattr(ray, "shutdown", lambda: setattr(found, "alive", False))
    iter_messages = iter(())

    def rows(**given: Any) -> list[Any]:
        nonlocal iter_messages
        iter_messages = iter(found.messages)
        log = found.shown.append
        return list(workers.train_with_workers(run, None, None, log, key=KEY, **given))

    found.rows = rows
    return found


def test_rows_are_yielded_lines_are_logged_and_each_message_is_answered(fitted):
    fitted.messages = [[{"step": 1}], "resumes", [{"step": 2}]]
    assert fitted.rows() == [[{"step": 1}], [{"step": 2}]]
    assert fitted.shown == ["resumes"]
    assert fitted.box.calls == [*3 * [("answer", True)], ("stop",)]


def test_the_key_is_hidden_in_what_ray_shows_of_a_training(fitted):
    """Ray Train keeps the task as text for its dashboard, and writes it into event files."""
    fitted.rows()
    ((task, *_),) = fitted.tasks
    assert task["key"].get_secret_value() == KEY
    assert KEY not in str(task)


def test_why_a_training_ended_is_one_line(fitted):
    fitted.messages = [DivergedError("at step 3")]
    with pytest.raises(DivergedError, match="at step 3"):
        fitted.rows()
    fitted.messages, fitted.error = [], ValueError("first\nlast")
    with pytest.raises(PipelineError, match=r"^training failed: last$"):
        fitted.rows()
    fitted.error = StorageError("no room")
    with pytest.raises(StorageError, match=r"^no room$"):
        fitted.rows()


def test_ctrl_c_ends_ray_at_once(fitted, monkeypatch):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "next_message", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fitted.rows()
    assert not fitted.alive
    assert fitted.box.calls == []


def trainer_of(
    monkeypatch, run, tmp_path, folder: Any = None, inspection: Inspection | None = None
) -> dict[str, Any]:
    """What Ray Train is given for a run whose folder is, by default, none of this machine."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(workers, "TorchTrainer", lambda work, **options: given.update(options))
    for name in ("ScalingConfig", "RunConfig", "FailureConfig"):
        monkeypatch.setattr(ray.train, name, lambda **options: options)
    workers._trainer({"config": run, "folder": folder}, tmp_path, inspection)
    return given


@pytest.mark.parametrize(
    ("resources", "per_worker", "gpu"),
    [
        ({"workers": 2}, {"CPU": 1}, False),
        ({"workers": 2, "cpus_per_worker": 3}, {"CPU": 3}, False),
        ({"workers": 2, "gpus_per_worker": 0.5}, {"CPU": 1, "GPU": 0.5}, True),
    ],
)
def test_workers_have_the_configured_resources_and_retries(
    run, monkeypatch, tmp_path, resources, per_worker, gpu
):
    monkeypatch.delenv(START_TIMEOUT, raising=False)
    changed = run.replace({"resources": resources, "failures.retries": 5})
    given = trainer_of(monkeypatch, changed, tmp_path)
    assert given["scaling_config"] == {
        "num_workers": 2,
        "label_selector": None,
        "elastic_resize_monitor_interval_s": 60,
        "use_gpu": gpu,
        "resources_per_worker": per_worker,
    }
    failures = {"max_failures": 5, "controller_failure_limit": 3}
    assert given["run_config"]["failure_config"] == failures
    assert given["run_config"]["storage_path"] == str(tmp_path)
    assert START_TIMEOUT not in os.environ


def test_workers_whose_folder_is_one_of_this_machine_are_on_the_head_node(
    run, monkeypatch, tmp_path
):
    given = trainer_of(monkeypatch, run, tmp_path, folder=tmp_path)
    bundle = {"CPU": 1, "node:__internal_head__": 0.001}
    assert given["scaling_config"]["resources_per_worker"] == bundle
    alone = Inspection("file:///mnt", bfloat16=False, not_shared="a SQLite file", passed={"1"})
    given = trainer_of(monkeypatch, run, tmp_path, inspection=alone)
    assert given["scaling_config"]["resources_per_worker"] == bundle
    assert given["scaling_config"]["label_selector"] is None


@pytest.mark.parametrize(
    ("passed", "wanted", "number", "excluded"),
    [
        ("abcd", 4, 4, None),
        ("abcd", [2, 8], (2, 8), None),
        ("abd", 4, 4, "!in(c)"),
        ("bd", [2, 8], (2, 4), "!in(a,c)"),  # or it would wait for places on the others
        ("b", [2, 4], (2, 2), "!in(a,c,d)"),
        ("", [2, 4], (2, 2), "!in(a,b,c,d)"),
    ],
)
def test_workers_are_placed_on_nodes_that_have_passed(
    run, monkeypatch, tmp_path, passed, wanted, number, excluded
):
    monkeypatch.setenv(START_TIMEOUT, "30")
    monkeypatch.setattr(workers, "alive_nodes", lambda _: [Node("", 2, id=one) for one in "abcd"])
    known = Inspection("s3://b", bfloat16=False, passed=set(passed), refused={"a": "torch"})
    changed = run.replace({"resources.workers": wanted})
    scaling = trainer_of(monkeypatch, changed, tmp_path, inspection=known)["scaling_config"]
    assert scaling["num_workers"] == number
    assert scaling["label_selector"] == ({"ray.io/node-id": excluded} if excluded else None)
    assert scaling["resources_per_worker"] == {"CPU": 1}


def test_ray_train_takes_the_label_selector():
    selector = {"ray.io/node-id": "!in(a,c)"}
    config = ray.train.ScalingConfig(num_workers=(2, 4), label_selector=selector)
    assert config._label_selector_per_worker(3) == [selector] * 3


@pytest.mark.parametrize("given", [False, True])
def test_the_nodes_of_a_training_are_those_of_the_command(fitted, monkeypatch, given):
    """A trial's process is given them; a fit in the command's process has them."""
    known, used = Inspection("s3://b", bfloat16=False), []
    monkeypatch.setattr(workers, "last_inspection", lambda: None if given else known)
    for name in ("wait_for_room", "has_room"):
        monkeypatch.setattr(workers, name, lambda _, one: bool(used.append(one)) or True)
    fitted.error = ValueError("last")
    with pytest.raises(PipelineError):
        fitted.rows(inspection=known if given else None)
    used.append(fitted.tasks[0][2])
    assert len(used) == 3 and all(one is known for one in used)


def test_a_range_of_workers_waits_a_minute_for_a_place(run, monkeypatch, tmp_path):
    monkeypatch.setenv(START_TIMEOUT, "30")
    given = trainer_of(monkeypatch, run.replace({"resources.workers": [1, 4]}), tmp_path)
    assert given["scaling_config"]["num_workers"] == (1, 4)
    assert os.environ[START_TIMEOUT] == "60"


def test_gloo_uses_the_interface_of_the_nodes_address(monkeypatch):
    addresses = {"lo": ["127.0.0.1", "::1"], "eth0": ["fe80::1", "10.0.0.7"], "eth1": ["10.0.1.7"]}
    found = {
        name: [SimpleNamespace(address=one) for one in several]
        for name, several in addresses.items()
    }
    monkeypatch.setattr(workers.psutil, "net_if_addrs", lambda: found)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "removed after the test")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    workers._use_own_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth0"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    workers._use_own_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("end", ["last", "told to stop", "diverged"])
def test_the_first_worker_sends_and_all_stop_together(run, monkeypatch, rank, end):
    box, closed = Remote(end != "told to stop"), []

    def train(config, corpus, folder, log, *, key):
        assert key == KEY
        log("resumes")
        try:
            yield [{"step": 1}]
            if end == "diverged":
                raise DivergedError("at step 2")
            yield [{"step": 2}]
        finally:
            closed.append(True)

    def broadcast(go_on: torch.Tensor, src: int) -> None:
        assert src == 0
        if rank:
            go_on.fill_(end != "told to stop")

    monkeypatch.setattr(workers, "train", train)
    monkeypatch.setattr(workers.dist, "get_rank", lambda: rank)
    monkeypatch.setattr(workers.dist, "broadcast", broadcast)
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    task = {"config": run, "corpus": None, "folder": None, "mailbox": box}
    workers._work({**task, "key": SecretStr(KEY)})
    sent = {"last": [[{"step": 1}], [{"step": 2}]], "told to stop": [[{"step": 1}]]}
    posted = [message for _, message in box.calls]
    if rank:
        assert posted == []
    elif end == "diverged":
        assert posted[:2] == ["resumes", [{"step": 1}]]
        assert str(posted[2]) == "at step 2"
    else:
        assert posted == ["resumes", *sent[end]]
    assert closed == [True]


def test_code_is_sent_to_other_machines_unless_ray_has_its_own_copy(monkeypatch):
    monkeypatch.delenv(connection.names.JOB_CONFIG, raising=False)
    sent = connection._runtime_env()
    assert sent["py_modules"] == [f"{ROOT}/dca", f"{ROOT}/pipelines"]
    monkeypatch.setenv(connection.names.JOB_CONFIG, "{}")
    assert connection._runtime_env() == {"env_vars": connection.names.ENVIRONMENT}


def test_what_goes_wrong_in_a_cluster_that_starts_early_is_raised_where_it_is_needed(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise ConfigError("no folder for sockets")

    monkeypatch.setattr(connection, "_initialize", fail)
    monkeypatch.setattr(connection, "_set_defaults", lambda _: None)
    connection.start_early()
    with pytest.raises(ConfigError, match=r"^no folder for sockets$"):
        connection.connect()
    connection.shutdown()
    assert not [one for one in threading.enumerate() if isinstance(one, connection._Starter)]
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    connection.start_early()  # nothing: it is checked first, where it is needed
    connection.shutdown()


def test_an_empty_address_is_none(monkeypatch):
    for value, expected in (("", None), ("local", None), ("a:1", "a:1")):
        monkeypatch.setenv("RAY_ADDRESS", value)
        assert connection.cluster_address() == expected


@pytest.mark.parametrize(
    ("address", "started", "reason"),
    [
        ("ray://127.0.0.1:1", None, "expected HOST:PORT of a head node; Ray Client cannot run"),
        ("http://127.0.0.1:1", None, "expected HOST:PORT of a head node"),
        (":6379", None, "no Ray cluster answers there (it has no host); expected HOST:PORT"),
        ("127.0.0.1", None, "no Ray cluster answers there (it has no port)"),
        ("127.0.0.1:99999", None, "no Ray cluster answers there (expected a port of 1 to 65535)"),
        ("auto", None, "`ray start` has started none on this machine; expected HOST:PORT"),
        ("auto", "127.0.0.1:9", "no Ray cluster answers there ("),
    ],
)
def test_an_address_without_a_cluster_is_refused_before_ray_waits(
    monkeypatch, address, started, reason
):
    monkeypatch.setattr(connection.names, "started_cluster", lambda: started)
    with pytest.raises(ConfigError, match=re.escape(f"RAY_ADDRESS={address}: {reason}")) as error:
        connection._head_node(address)
    assert ("Ray Client" in str(error.value)) == address.startswith("ray:")


def test_auto_is_the_cluster_that_was_started_on_this_machine(monkeypatch):
    monkeypatch.setattr(connection.names, "started_cluster", lambda: "a:1")
    monkeypatch.setattr(connection, "_no_answer", lambda address: "")
    monkeypatch.setattr(connection.names, "is_head_node", lambda address, seconds: address == "a:1")
    monkeypatch.setattr(connection.names, "has_node", lambda: True)
    assert connection._head_node("auto") == "a:1"
    monkeypatch.setattr(connection.names, "has_node", lambda: False)
    with pytest.raises(ConfigError, match=r"this machine is no node .*`ray start --address=a:1`$"):
        connection._head_node("auto")


def test_a_cluster_of_another_version_is_one_line(monkeypatch):
    def init(**_: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9\n")

    monkeypatch.setenv("RAY_ADDRESS", "a:1")
    monkeypatch.setattr(connection, "_head_node", lambda address: address)
    with pytest.raises(ConfigError) as error:
        connection._initialize(SimpleNamespace(init=init), dashboard=False)
    expected = "RAY_ADDRESS=a:1: Version mismatch: The cluster was started with: Ray: 2.9"
    assert str(error.value) == expected


@pytest.mark.parametrize("address", ["127.0.0.1:9", "host", "host:x", "127.0.0.1:"])
def test_a_wrong_address_is_found_in_seconds(address):
    with pytest.raises(ConfigError, match=f"^RAY_ADDRESS={address}: no Ray cluster answers there"):
        connection._head_node(address)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (PermissionError(), "the token of the Ray cluster there is missing or wrong; expected "),
        (
            TimeoutError(),
            "no Ray cluster answered there in 12 s; expected HOST:PORT of a head node",
        ),
        (False, "what answers there is no Ray cluster; expected HOST:PORT of a head node"),
    ],
)
def test_an_address_whose_token_may_be_missing_is_refused_with_how_to_give_it(
    monkeypatch, found, reason
):
    def probe(address: str, *, seconds: float) -> bool:
        if isinstance(found, OSError):
            raise found
        return found

    monkeypatch.setattr(connection, "_no_answer", lambda address: "")
    monkeypatch.setattr(connection.names, "is_head_node", probe)
    ways = "RAY_AUTH_MODE=token, and its token in RAY_AUTH_TOKEN or in ~/.ray/auth_token"
    with pytest.raises(ConfigError, match=f"^RAY_ADDRESS=a:1: {reason}.*{re.escape(ways)}$"):
        connection._head_node("a:1")


@pytest.mark.process
def test_what_answers_but_is_no_cluster_is_refused_and_signals_work_meanwhile(monkeypatch):
    """Ray would wait for minutes there, deaf to Ctrl-C."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_port}"
    monkeypatch.setattr(connection, "HEALTH_SECONDS", 3)
    answers = "(no Ray cluster answered there in 3 s|what answers there is no Ray cluster)"
    with pytest.raises(ConfigError, match=f"^RAY_ADDRESS={address}: {answers}; expected "):
        connection._head_node(address)
    monkeypatch.setattr(connection, "HEALTH_SECONDS", 60)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        connection._head_node(address)
    server.shutdown()
    server.server_close()


def test_only_the_nodes_that_are_alive_count():
    names = connection.names
    nodes = [
        {
            names.NODE_ADDRESS: address,
            names.NODE_RESOURCES: resources,
            names.NODE_ID: address * 2,
            names.NODE_ALIVE: alive,
        }
        for address, resources, alive in (
            ("a", {"CPU": 4.0, "GPU": 1.0}, True),
            ("b", {}, True),
            ("c", {"CPU": 8.0}, False),
        )
    ]
    found = connection.alive_nodes(SimpleNamespace(nodes=lambda: nodes))
    assert [(node.address, node.cpus, node.gpus, node.id) for node in found] == [
        ("a", 4.0, 1.0, "aa"),
        ("b", 0, 0, "bb"),
    ]
    assert [str(node) for node in found] == ["a (4 CPUs, 1 GPU)", "b (0 CPUs)"]


def test_a_cluster_that_never_starts_is_not_waited_for_for_ever(monkeypatch):
    """As where an interrupt has kept a lock that the thread needs in which Ray starts."""
    monkeypatch.setattr(connection, "START_SECONDS", 0.01)
    starter = connection._Starter(dashboard=False)  # which nothing runs
    monkeypatch.setattr(connection, "_starters", [starter])
    connection.shutdown()
    assert connection._starters == []
