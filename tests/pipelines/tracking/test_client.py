import time
from collections import Counter
from dataclasses import replace

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipelines.console.errors import ConfigError, PipelineError
from pipelines.tracking.client import RetryingClient, check_uri, connect
from pipelines.tracking.store import Store
from pipelines.tracking.uri import tracking_uri
from pipelines.tracking.writer import Writer
from tests.pipelines.tracking.histories import rows, steps_of


class Flaky:
    """The client of a store that does its work and is away before it answers."""

    def __init__(self, client) -> None:
        self.client, self.lost = client, Counter()

    def __getattr__(self, name: str):
        def call(*args, **kwargs):
            answer = getattr(self.client, name)(*args, **kwargs)
            times = {"create_run": 1, "log_batch": 2, "set_terminated": 2}
            if self.lost[name] < times.get(name, 0):
                self.lost[name] += 1
                raise MlflowException("API request to http://server failed with exception: gone")
            return answer

        return call


def test_what_was_sent_is_stored_once_though_its_answers_are_lost(store, caplog):
    flaky = Flaky(MlflowClient(tracking_uri(), tracking_uri()))
    retrying = replace(store, client=RetryingClient(flaky, tracking_uri()))
    writer = Writer(retrying)
    run = writer.open(lambda: retrying.create("trial", "k", "n", params={"a": 1})).result()
    writer.write(run, rows(1, 2))
    writer.finish(run, "FINISHED", {"dca.state": "complete"}, {"step": 2, "time": 1e9, "best": 1})
    writer.close()
    assert flaky.lost == {"create_run": 1, "log_batch": 2, "set_terminated": 2}
    (found,) = store.find("trial")
    assert found.info.run_id == run
    assert (found.info.status, found.data.params) == ("FINISHED", {"a": "1"})
    assert steps_of(store, run) == [1, 2]
    assert "trying again" in caplog.text


def test_a_refusal_is_not_retried(store):
    client = RetryingClient(store.client._client, store.client.uri)
    started = time.monotonic()
    with pytest.raises(MlflowException, match="not found"):
        client.get_run("none")
    assert time.monotonic() - started < 1


class Away:
    """The client of a store that is away; it counts the calls."""

    def __init__(self) -> None:
        self.calls = 0

    def get_run(self, run_id: str) -> None:
        self.calls += 1
        raise MlflowException("API request to http://server failed with exception: gone")


def test_after_a_cancelled_wait_every_call_of_the_connection_is_final(store):
    away = Away()
    client = RetryingClient(away, store.client.uri)
    client.cancel_retries()
    for calls in (1, 2):
        with pytest.raises(
            PipelineError, match="gone; nothing is lost: missing rows are in the checkpoints"
        ):
            client.get_run("r")
        assert away.calls == calls


def test_a_second_command_waits_again_after_the_first_has_given_up(store, tmp_path):
    run = store.create("fit", "k", "n")
    store.fail(run, KeyboardInterrupt())
    assert store.client._cancelled.is_set()
    second = Store.open("tiny", tmp_path / "runs")
    flaky = Flaky(second.client._client)
    again = replace(second, client=RetryingClient(flaky, second.client.uri))
    again.tag(run, {"a": "b"})
    assert flaky.lost["log_batch"] == 2
    assert second.client.get_run(run).data.tags["a"] == "b"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://127.0.0.1:9", "no tracking server answers"),
        ("sqlite:////nowhere/at/all.db", "cannot be written"),
        ("file:///tmp/x", "expected sqlite:///FILE or http"),
        (f"sqlite:///{__file__}", "MLFLOW_TRACKING_URI"),
    ],
)
def test_a_store_that_does_not_answer_is_found_in_seconds(uri, expected):
    started = time.monotonic()
    with pytest.raises(ConfigError, match=expected):
        connect(uri)
    assert time.monotonic() - started < 20


def test_a_store_that_is_away_is_waited_for_an_hour(store):
    policy = store.client._retries
    assert (policy.pause_seconds, policy.max_pause_seconds) == (0.5, 10)
    assert (policy.max_seconds, policy.max_attempts) == (3600, None)
    assert policy.random_pauses


def test_a_file_that_is_no_database_is_refused_and_an_empty_one_is_not(tmp_path):
    path = tmp_path / "a.db"
    for content, valid in (
        (b"", True),
        (b"SQLite format 3", True),
        (b"SQLit", False),
        (b"x", False),
    ):
        path.write_bytes(content)
        if valid:
            check_uri(f"sqlite:///{path}")
        else:
            with pytest.raises(ConfigError, match="is no SQLite database"):
                check_uri(f"sqlite:///{path}")
    check_uri(f"sqlite:///{tmp_path}/new.db")
    assert not (tmp_path / "new.db").exists()
