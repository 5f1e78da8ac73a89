import threading
import time
from contextlib import closing

import pytest

from pipelines.console.errors import PipelineError
from pipelines.tracking import writer as module
from pipelines.tracking.writer import Writer
from tests.pipelines.tracking.histories import rows, steps_of


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
    writer.enqueue(lambda: done.append("left out"), run)
    writer.enqueue(lambda: done.append("done"))
    with pytest.raises(PipelineError, match=f"^run {run} was deleted in MLflow meanwhile"):
        writer.close()
    left = store.client.get_run(run)
    assert (left.info.status, left.data.tags.get("dca.state")) == ("RUNNING", None)
    assert done == ["done"]


def test_after_an_interrupt_what_does_not_end_is_not_waited_for(store, monkeypatch, caplog):
    monkeypatch.setattr(module, "INTERRUPTED_SECONDS", 0.1)
    server = threading.Event()  # that answers once it is set
    writer = Writer(store)
    writer.enqueue(server.wait)
    with pytest.raises(KeyboardInterrupt), closing(writer):
        raise KeyboardInterrupt
    assert caplog.messages == [
        "not waited for: what is not stored yet is in the checkpoints; it is stored, and runs that "
        "are shown as RUNNING are ended, by the next start"
    ]
    with pytest.raises(PipelineError, match="not waited for any longer"):
        store.client.get_run("a")
    server.set()


def test_after_an_interrupt_a_queue_that_gets_on_is_waited_for(store, monkeypatch, caplog):
    monkeypatch.setattr(module, "INTERRUPTED_SECONDS", 1.0)
    writer, done = Writer(store), []
    for place in range(4):
        writer.enqueue(lambda place=place: done.append(time.sleep(0.4)))
    with pytest.raises(KeyboardInterrupt), closing(writer):
        raise KeyboardInterrupt
    assert len(done) == 4
    assert caplog.messages == []
