"""What is recorded and shown of Tune's events; Tune itself runs in the tests of the commands."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError
from ray.tune import TuneError

from pipelines.cluster import trial_events as module
from pipelines.cluster.trial import TrialOutcome
from pipelines.cluster.trial_events import TrialEvents, crash_reason
from pipelines.console.errors import PipelineError, StorageError

DEATH = "Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits. It ran out"
ROWS = [{"step": 4, "time": 1e9, "tokens": 1024, "tokens_per_second": 512.0}]
REPORT = {"objective": 3.5, "tokens": 1024, "rows": ROWS, "notes": []}


class Calls:
    """Stands for a searcher, a recorder or a progress: keeps the calls."""

    def __init__(self, answer: Any = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._answer = answer

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls.append((name, *arguments))
            return self._answer

        return call


class Events:
    """Tune's events of one trial, and what they lead to."""

    def __init__(self, experiment, path: Path, *, retry: int = 0) -> None:
        self.recorder, self.progress = Calls("run"), Calls()
        base, queued_retry = experiment.training_run(), lambda _: retry
        self.progress.name = "trial {}".format
        self.events = TrialEvents(base, queued_retry, self.recorder, self.progress)
        self.trial = SimpleNamespace(
            config={"number": 7, "values": {"model.depth": 2}},
            last_result={},
            pickled_error_file=str(path / "error.pkl"),
        )
        self.events.on_trial_start(0, [], self.trial)

    def report(self, result: dict[str, Any]) -> None:
        self.trial.last_result = result
        self.events.on_trial_result(0, [], self.trial, result)

    def fail(self, error: BaseException) -> None:
        Path(self.trial.pickled_error_file).write_bytes(cloudpickle.dumps(error))
        self.events.on_trial_error(0, [], self.trial)


def raised(error: Exception) -> RayTaskError:
    """An exception as Ray hands it over from a trial's process."""
    return RayTaskError("step", "traceback", error)


@pytest.mark.parametrize(("finished", "state"), [(True, "complete"), (False, "pruned")])
def test_a_trial_that_ended_is_recorded_with_its_objective_and_its_last_row(
    experiment, tmp_path, finished, state
):
    events = Events(experiment, tmp_path)
    events.report(REPORT | {"finished": finished, "notes": ["resumes from step 2/4"]})
    events.events.on_trial_complete(0, [], events.trial)
    end = TrialOutcome(state, objective=3.5, last_row=ROWS[-1])
    assert events.recorder.calls == [("write", 7, ROWS), ("end_trial", 7, end)]
    assert events.progress.calls == [
        ("started", 7, {"model.depth": 2}),
        ("noted", 7, "resumes from step 2/4"),
        ("reported", 7, 1024, 3.5, 512.0),
        ("ended", 7, {"model.depth": 2}, "run", end),
    ]


def test_a_trial_that_diverged_is_recorded_with_its_reason_and_no_number(experiment, tmp_path):
    events = Events(experiment, tmp_path)
    events.report({"failed": "diverged at step 3", "notes": [], "done": True})
    events.events.on_trial_complete(0, [], events.trial)
    assert events.recorder.calls == [
        ("end_trial", 7, TrialOutcome("failed", reason="diverged at step 3"))
    ]


def test_a_crashed_trial_that_starts_again_has_not_ended(experiment, tmp_path):
    events = Events(experiment, tmp_path, retry=2)
    events.fail(raised(MemoryError()))
    assert events.recorder.calls == []
    assert events.progress.calls[-1] == ("crashed", 7, "MemoryError", 2)


def test_a_crashed_trial_that_does_not_is_recorded_as_failed(experiment, tmp_path):
    events = Events(experiment, tmp_path)
    events.fail(raised(PipelineError("training failed: two\nlines")))
    end = TrialOutcome("failed", reason="PipelineError: training failed: two")
    assert events.recorder.calls == [("end_trial", 7, end)]


def test_a_disk_that_takes_no_checkpoint_ends_the_search(experiment, tmp_path):
    events = Events(experiment, tmp_path, retry=1)
    with pytest.raises(StorageError, match="trial 7: /runs: no room"):
        events.fail(raised(StorageError("/runs: no room")))
    assert events.recorder.calls == []


@pytest.mark.parametrize(
    ("workers", "seconds", "reason"),
    [
        (1, 11, "no evaluation within failures.timeout_seconds = 10"),
        (1, 9, "its process died: Worker unexpectedly exits."),
        (2, 11, "its process died: Worker unexpectedly exits."),
    ],
)
def test_a_trial_that_was_silent_for_too_long_timed_out(
    experiment, tmp_path, monkeypatch, workers, seconds, reason
):
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    changes = {"failures.timeout_seconds": 10, "resources.workers": workers}
    events = Events(experiment.replace(changes), tmp_path)
    events.report(REPORT)
    now += seconds
    events.fail(RayActorError(error_msg=DEATH))
    assert events.recorder.calls[-1] == ("end_trial", 7, TrialOutcome("failed", reason=reason))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("a\nb"), "ValueError: a"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("x" * 2000), f"RuntimeError: {'x' * 986}"),
        (RayActorError(error_msg=DEATH), "its process died: Worker unexpectedly exits."),
        (TuneError("Failure # 1\nTuneError: no trainable\n"), "TuneError: no trainable"),
        (
            ActorDiedError(),
            "ActorDiedError: The actor died unexpectedly before finishing this task.",
        ),
    ],
)
def test_the_reason_of_a_crash_is_one_line(error, reason):
    assert crash_reason(error) == reason
