"""A trial without Ray's bookkeeping."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from pipelines.cluster import memory, workers
from pipelines.cluster import trial as module
from pipelines.cluster.inspection import Inspection
from pipelines.cluster.trial import Trial, TrialOutcome
from pipelines.console.errors import (
    DamagedError,
    DeterministicError,
    DivergedError,
    PipelineError,
    StorageError,
)
from pipelines.training.config import TrainingRun


def config(values: Mapping[str, Any], group: str = "a", key: str = "") -> dict[str, Any]:
    """What Tune starts a trial with."""
    return {"group": group, "folder": "trial-0007", "values": values, "key": SecretStr(key)}


KNOWN = Inspection("s3://b", bfloat16=False)


def trial_of(run: TrainingRun, values: Mapping[str, Any] | None = None, key: str = "") -> Trial:
    trial = Trial.__new__(Trial)
    given = config(values or {}, key=key) | {"number": 7, "inspection": KNOWN}
    trial.setup(given, {"a": (run, Path("trials"))}, None)
    return trial


def test_values_that_do_not_go_together_are_a_failed_trial_that_does_not_start_again(run):
    """It raises nothing, after which the search would start it again."""
    trial = trial_of(run, {"model.heads": 4, "model.dim": 20})
    result = trial.step()
    trial.cleanup()
    assert result["done"] is True
    end = TrialOutcome.of(result)
    assert end.state == "failed"
    assert end.reason.startswith("model.heads: dim / heads must be an even number, got 20 / 4")


@pytest.mark.parametrize(
    ("result", "outcome"),
    [
        ({}, TrialOutcome("failed", reason="no evaluation")),
        ({"failed": "diverged"}, TrialOutcome("failed", reason="diverged")),
        (
            {"objective": 2.0, "finished": True, "rows": [{"step": 1}, {"step": 2}]},
            TrialOutcome("complete", objective=2.0, last_row={"step": 2}),
        ),
        (
            {"objective": 2.0, "finished": False, "rows": [{"step": 1}]},
            TrialOutcome("pruned", objective=2.0, last_row={"step": 1}),
        ),
    ],
)
def test_a_trial_ends_as_its_last_result_says(result, outcome):
    assert TrialOutcome.of(result) == outcome


def row(step: int, val: float | None = None, train: float = 9.0) -> dict[str, float]:
    evaluated = {} if val is None else {"val_bits_per_byte": val}
    return {"step": step, "tokens": 256.0 * step, "train_bits_per_byte": train, **evaluated}


def results_of(run, monkeypatch, *batches: list, **changes) -> list[dict]:
    """The results of a trial whose training yields these rows; text is a note."""
    closed, launched = [], []

    def launch(config, corpus, folder, notes, key, inspection):
        launched.append((folder, key, inspection))
        try:
            for batch in batches:
                notes += [one for one in batch if isinstance(one, str)]
                yield [one for one in batch if not isinstance(one, str)]
        finally:
            closed.append(True)

    monkeypatch.setattr(module, "_launch", launch)
    trial = trial_of(run, changes, key="k")
    results = [trial.step() for _ in batches]
    trial.cleanup()
    assert (launched, closed) == ([(Path("trials/trial-0007"), "k", KNOWN)], [True])
    return results


def test_each_step_of_a_trial_is_an_evaluation_with_the_best_so_far(run, monkeypatch):
    first, second, third = results_of(
        run,
        monkeypatch,
        ["resumes", row(2), row(4, 3.0), row(6), row(8, 2.0)],  # replayed
        [row(12, 2.5)],
        ["ends", row(16, 1.0)],
    )
    assert first["curve"] == [(1024, 3.0), (2048, 2.0)]
    assert (first["tokens"], first["objective"], len(first["rows"])) == (2048, 2.0, 4)
    assert (first["notes"], first["finished"], first["done"]) == (["resumes"], False, False)
    assert second["curve"] == [(3072, 2.0)]
    assert (second["objective"], second["notes"]) == (2.0, [])
    assert (third["curve"], third["notes"]) == ([(4096, 1.0)], ["ends"])
    assert third["finished"] is third["done"] is True


def test_a_trial_minimises_the_configured_metric(run, monkeypatch):
    best = {"train.best_metric": "train_bits_per_byte"}
    (result,) = results_of(run, monkeypatch, [row(4, 3.0, 5.0), row(8, 2.0, 6.0)], **best)
    assert result["curve"] == [(1024, 5.0), (2048, 5.0)]
    assert result["objective"] == 5.0


def test_a_trial_with_one_worker_trains_in_its_process_and_others_under_ray(run, monkeypatch):
    calls = []
    monkeypatch.setattr(
        module.loop, "train", lambda *given, key: calls.append(("loop", given, key))
    )
    monkeypatch.setattr(module.loop, "with_watchdog", lambda _, limit: calls.append(limit))
    monkeypatch.setattr(
        workers,
        "train_with_workers",
        lambda *given, key, inspection: calls.append(("ray", (*given, inspection), key)),
    )
    timed = run.replace({"failures.timeout_seconds": 9, "failures.retries": 5})
    module._launch(timed, None, Path("a"), [], "first")
    two = timed.replace({"resources.workers": 2})
    module._launch(two, None, Path("b"), [], None, KNOWN)
    (one, own, first), limit, (other, theirs, second) = calls
    assert (first, second) == ("first", None)
    assert (one, own[0], own[2], limit) == ("loop", timed, Path("a"), 9)
    assert (other, theirs[2]) == ("ray", Path("b"))
    assert theirs[-1] is KNOWN
    assert theirs[0] == two.replace({"failures.retries": 0})


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TypeError("kind() takes 1 argument"), "TypeError: kind() takes 1 argument"),
        (IndexError("out of range"), "IndexError: out of range"),
        (NotImplementedError(), "NotImplementedError: "),
        (DivergedError("diverged at step 3"), "diverged at step 3"),
        (DamagedError("x is not what was written"), "x is not what was written"),
        (DeterministicError("training failed: KeyError: 3"), "training failed: KeyError: 3"),
    ],
)
def test_an_error_that_another_attempt_would_meet_again_fails_the_trial_at_once(
    run, monkeypatch, capsys, error, reason
):
    def launch(*given):
        raise error
        yield

    monkeypatch.setattr(module, "_launch", launch)
    trial = trial_of(run)
    result = trial.step()
    assert (result["done"], result["failed"]) == (True, reason)
    assert TrialOutcome.of(result).diverged == isinstance(error, DivergedError)
    shown = capsys.readouterr().err
    assert ("Traceback" in shown) == (not isinstance(error, PipelineError))


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), MemoryError(), OSError("no route")])
def test_an_error_of_the_moment_ends_the_trial_so_that_it_is_retried(run, monkeypatch, error):
    def launch(*given):
        raise error
        yield

    monkeypatch.setattr(module, "_launch", launch)
    trial = trial_of(run)
    with pytest.raises(type(error)):
        trial.step()


def test_a_trial_that_needs_more_than_the_machine_has_fails_at_once(run, monkeypatch):
    monkeypatch.setattr(memory, "machine_bytes", lambda: 100 << 20)
    trial = trial_of(run)
    assert "the machine has 0.1 GiB" in trial.step()["failed"]


def test_a_process_goes_on_with_a_trial_of_another_group(run, monkeypatch):
    launched = []

    def launch(config, corpus, folder, notes, key, inspection):
        launched.append((config.model.depth, config.train.learning_rate, folder, key))
        yield [row(4, 3.0)]

    monkeypatch.setattr(module, "_launch", launch)
    deep = run.replace({"model.depth": 3})
    groups = {"a": (run, Path("a")), "deep": (deep, Path("b"))}
    trial = Trial.__new__(Trial)
    trial.setup(config({}, "a", "one"), groups, None)
    trial.step()
    assert trial.reset_config(config({"train.learning_rate": 0.5}, "deep", "two"))
    trial.step()
    trial.cleanup()
    assert launched == [
        (2, 0.01, Path("a/trial-0007"), "one"),
        (3, 0.5, Path("b/trial-0007"), "two"),
    ]


def test_the_last_checkpoint_of_a_stopped_trial_is_no_error_of_the_next(run, monkeypatch):
    """On a GPU it may be written when the search removes the folder."""

    def launch(*given):
        try:
            yield [row(4, 3.0)]
        finally:
            raise StorageError("trial-0007/000004: the checkpoint cannot be written")

    monkeypatch.setattr(module, "_launch", launch)
    trial = trial_of(run)
    trial.step()
    assert trial.reset_config(config({"train.learning_rate": 0.5}))
    assert trial.step()["objective"] == 3.0
    trial.cleanup()
