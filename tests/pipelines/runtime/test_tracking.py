import time

import pytest

from pipelines.runtime.errors import ConfigError, PipelineError
from pipelines.runtime.tracking import HistoryWriter, Registry, Store, connect, tracking_uri


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return Store.open("tiny", tmp_path / "runs")


def rows(*steps: int) -> list[dict]:
    return [{"step": step, "train_bits_per_byte": float(step), "tokens": step} for step in steps]


def steps_of(store: Store, run: str) -> list[int]:
    return [point.step for point in store.client.get_metric_history(run, "train_bits_per_byte")]


def test_a_replayed_history_leaves_no_gap_and_no_duplicate(store):
    run = store.create("trial", "k", "n")
    first = HistoryWriter(store)
    first.write(run, rows(1, 2, 3))
    first.write(run, rows(2, 3, 4))
    first.close()
    second = HistoryWriter(store)
    second.write(run, rows(*range(1, 300)))
    second.finish(run, "FINISHED", {"dca.state": "complete"}, {"step": 299, "best": 1.0})
    second.close()
    assert sorted(steps_of(store, run)) == list(range(1, 300))
    done = store.client.get_run(run)
    assert (done.info.status, done.data.tags["dca.state"]) == ("FINISHED", "complete")
    assert done.data.metrics["best"] == 1.0
    store.log_metrics(run, {"step": 299, "best": 1.0})
    assert len(store.client.get_metric_history(run, "best")) == 1


def test_a_history_that_could_not_be_stored_is_an_error(store):
    run = store.create("trial", "k", "n")
    writer = HistoryWriter(store)
    store.client.delete_run(run)  # as good as any other reason for the store to refuse
    writer.write(run, rows(1))
    writer.finish(run, "FINISHED", {"dca.state": "complete"})
    with pytest.raises(PipelineError, match="history"):
        writer.close()
    left = store.client.get_run(run)
    assert (left.info.status, left.data.tags.get("dca.state")) == ("RUNNING", None)


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


def test_registering_twice_makes_one_version(store, tmp_path):
    run = store.create("fit", "k", "n")
    model = store.client.create_logged_model(store.experiment_id, source_run_id=run)
    uri = f"models:/{model.model_id}"
    registry = Registry(store.client, "tiny")
    assert registry.register(uri, run, {"a": "1"}) == 1
    assert registry.register(uri, run, {"a": "2"}) == 1
    assert registry.get(1).tags["a"] == "2"
    assert registry.by_alias("champion") is None
    registry.point("champion", 1)
    assert int(registry.by_alias("champion").version) == 1
