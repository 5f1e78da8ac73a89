import os
import time
from collections import Counter
from dataclasses import replace

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipelines.console.errors import ConfigError, PipelineError
from pipelines.tracking.client import connect
from pipelines.tracking.locks import exclusive_lock
from pipelines.tracking.retries import RetryingClient
from pipelines.tracking.store import Store
from pipelines.tracking.uri import tracking_uri
from pipelines.tracking.writer import Writer


def rows(*steps: int) -> list[dict]:
    return [
        {"step": step, "time": 1e9 + step, "train_bits_per_byte": float(step), "tokens": step}
        for step in steps
    ]


def steps_of(store: Store, run: str) -> list[int]:
    return [point.step for point in store.client.get_metric_history(run, "train_bits_per_byte")]


def test_a_replayed_history_leaves_no_gap_and_no_duplicate(store):
    run = store.create("trial", "k", "n")
    first = Writer(store)
    first.write(run, rows(1, 2, 3))
    first.write(run, rows(2, 3, 4))
    first.close()
    second = Writer(store)
    second.write(run, rows(*range(1, 300)))
    for _ in range(2):
        summary = {"step": 299, "time": 1e9, "best": 1.0}
        second.finish(run, "FINISHED", {"dca.state": "complete"}, summary)
    second.close()
    assert sorted(steps_of(store, run)) == list(range(1, 300))
    done = store.client.get_run(run)
    assert (done.info.status, done.data.tags["dca.state"]) == ("FINISHED", "complete")
    (best,) = store.client.get_metric_history(run, "best")
    assert (best.value, best.step, best.timestamp) == (1.0, 299, 10**12)
    store.log_metrics(run, {"step": 299, "best": 1.0})
    assert len(store.client.get_metric_history(run, "best")) == 1
    assert "time" not in done.data.metrics


def test_a_history_that_could_not_be_stored_is_an_error(store):
    run = store.create("trial", "k", "n")
    writer = Writer(store)
    store.client.delete_run(run)  # as good as any other reason for the store to refuse
    writer.write(run, rows(1))
    writer.finish(run, "FINISHED", {"dca.state": "complete"})
    done: list[str] = []
    writer.then(lambda: done.append("left out"), run)
    writer.then(lambda: done.append("done"))
    with pytest.raises(PipelineError, match="history"):
        writer.close()
    left = store.client.get_run(run)
    assert (left.info.status, left.data.tags.get("dca.state")) == ("RUNNING", None)
    assert done == ["done"]


class Flaky:
    """The client of a store that does what it is asked, and goes away before it answers."""

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


def test_what_a_store_was_told_is_stored_once_though_its_answers_are_lost(store, caplog):
    flaky = Flaky(MlflowClient(tracking_uri(), tracking_uri()))
    patient = replace(store, client=RetryingClient(flaky))
    writer = Writer(patient)
    run = writer.open(lambda: patient.create("trial", "k", "n", params={"a": 1})).result()
    writer.write(run, rows(1, 2))
    writer.finish(run, "FINISHED", {"dca.state": "complete"}, {"step": 2, "time": 1e9, "best": 1})
    writer.close()
    assert flaky.lost == {"create_run": 1, "log_batch": 2, "set_terminated": 2}
    (found,) = store.find("trial")
    assert found.info.run_id == run
    assert (found.info.status, found.data.params) == ("FINISHED", {"a": "1"})
    assert steps_of(store, run) == [1, 2]
    assert "trying again" in caplog.text


def test_a_store_that_says_no_is_not_asked_again(store):
    client = RetryingClient(store.client)
    started = time.monotonic()
    with pytest.raises(MlflowException, match="not found"):
        client.get_run("nobody")
    assert time.monotonic() - started < 1


def test_one_process_at_a_time_does_a_work(store):
    with (
        exclusive_lock("a"),
        exclusive_lock("b"),
        pytest.raises(PipelineError, match=f"a: process {os.getpid()} is at work on it"),
        exclusive_lock("a"),
    ):
        pass
    with exclusive_lock("a"):
        pass


def test_a_run_is_found_by_what_it_is(store):
    run = store.create("fit", "key", "any name", params={"model": {"dim": 3}}, tags={"a": "b"})
    store.create("fit", "other", "any name")
    (found,) = store.find("fit", "key")
    assert found.info.run_id == run
    assert found.data.params == {"model.dim": "3"}
    store.tag(run, {"dca.memory": "forgotten"})
    assert store.find("fit", "key") == []
    assert len(store.find("fit")) == 1


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


def test_without_a_setting_the_database_lies_where_mlflow_ui_looks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert tracking_uri() == f"sqlite:///{tmp_path}/other.db"


def test_a_description_is_written_once_and_what_somebody_wrote_there_stays(store):
    run = store.create("fit", "k", "n")
    for text in ("first", "second"):
        store.describe(text, run)
        store.describe(text)
    notes = store.client.get_run(run), store.client.get_experiment(store.experiment_id)
    assert notes[0].data.tags["mlflow.note.content"] == "first"
    assert notes[1].tags["mlflow.note.content"] == "first"


def test_a_result_is_on_the_page_of_its_model_with_the_bytes_it_was_measured_on(store, tmp_path):
    run = store.create("evaluate", "k", "n")
    model = store.client.create_logged_model(store.experiment_id, source_run_id=run)
    (tmp_path / "test.bin").write_bytes(b"abc")
    corpus = {"name": "files", "fingerprint": "0" * 32}
    store.log_corpus(run, corpus, training=tmp_path / "test.bin", test=tmp_path / "test.bin")
    store.log_use(run, model.model_id)
    dataset = {"dataset_name": "files test", "dataset_digest": "0" * 32}
    for _ in range(2):
        store.log_metrics(run, {"test_bits_per_byte": 2.5}, model_id=model.model_id, **dataset)
    (metric,) = store.client.get_logged_model(model.model_id).metrics
    assert (metric.key, metric.value, metric.run_id) == ("test_bits_per_byte", 2.5, run)
    assert (metric.dataset_name, metric.dataset_digest) == tuple(dataset.values())
    found = store.client.get_run(run)
    assert found.data.metrics == {"test_bits_per_byte": 2.5}
    names = {given.dataset.name for given in found.inputs.dataset_inputs}
    assert names == {"files training", "files test"}
    assert [given.model_id for given in found.inputs.model_inputs] == [model.model_id]
