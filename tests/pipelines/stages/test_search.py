"""How a search is rebuilt from its runs; its trials are run by the tests of the commands."""

import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import optuna
import pytest

from pipelines.cluster.trial import TrialOutcome
from pipelines.console.errors import PipelineError
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.data.splits import measure_corpus, write_splits
from pipelines.engine.results import StageResults
from pipelines.engine.stage import Context
from pipelines.experiment import Experiment
from pipelines.search import run as module
from pipelines.search import searcher as searcher_module
from pipelines.search.recorder import Recorder
from pipelines.search.results import Searched
from pipelines.search.resume import stored_search
from pipelines.stages.search import search
from pipelines.stages.select import STAGE as SELECT
from pipelines.stages.select import select
from pipelines.tracking.trials import StoredTrial
from pipelines.tracking.writer import Writer
from tests.pipelines.commands import invocation

ROW = {
    "step": 4,
    "time": 1e9,
    "tokens": 1024,
    "seconds": 2.0,
    "train_bits_per_byte": 3.0,
    "val_bits_per_byte": 3.5,
}
VALUES = {"train.learning_rate": 0.001}


@pytest.fixture
def begun(experiment: Experiment, store, tmp_path) -> tuple[Context, StageResults]:
    """A search that an earlier start has begun, and the result of the corpus stage."""
    space = {"train.learning_rate": {"log_uniform": [1e-4, 1e-2]}}
    changes = {"search.max_seconds": 20, "search.space": space, "search.trials": 3}
    experiment = experiment.replace(changes)
    found = measure_corpus(experiment.data, seq_len=experiment.train.seq_len)
    write_splits(experiment.data, found, tmp_path / "runs")
    pipeline, run = (store.create(kind, kind, kind) for kind in ("pipeline", "search"))
    context = Context(experiment, tmp_path / "runs", store, invocation(), pipeline, run)
    corpus = PreparedCorpus("files", found.fingerprint, found.sizes)
    return context, StageResults({"corpus": corpus})


def recorder_of(context: Context, needs: StageResults) -> Recorder:
    task = context.config.search_task()
    seconds = max(context.store.history(context.run_id, "seconds").values(), default=0.0)
    given = context, task, needs[PreparedCorpus], trials_of(context), seconds
    return Recorder(*given, Writer(context.store))


def close(recorder: Recorder) -> None:
    """At the end of a session."""
    recorder.close()
    recorder._writer.close()


def trials_of(context: Context) -> list[StoredTrial]:
    return stored_search(context.store, context.run_id, context.config.search_task()).trials


def waits(context: Context, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is shown while work is waited for that reports nothing itself."""
    found: list[str] = []

    def waiting(text: str, **_: object) -> AbstractContextManager[None]:
        found.append(text)
        return nullcontext()

    monkeypatch.setattr(context.progress, "waiting", waiting)
    return found


def start(context: Context, needs: StageResults, seconds: float) -> None:
    """One of the search's starts, which lasts so long and ends no trial."""
    recorder = recorder_of(context, needs)
    recorder.clock.start()
    recorder.clock._started -= seconds
    close(recorder)


def test_the_seconds_of_a_search_add_up_over_its_starts(begun, monkeypatch):
    context, needs = begun
    given: list[float] = []
    monkeypatch.setattr(
        module, "run_trials", lambda sessions: given.append(sessions[0].previous_seconds)
    )
    for seconds in (6, 6, 6):
        start(context, needs, seconds)
        with pytest.raises(PipelineError, match=r"no trial began within search\.max_seconds"):
            search(context, needs)
    assert given == pytest.approx([6, 12, 18], abs=1)
    start(context, needs, 6)
    with pytest.raises(PipelineError):
        search(context, needs)
    assert len(given) == 3


def test_a_line_about_a_search_begins_with_its_arm_if_there_are_several(begun):
    context, _ = begun
    assert module.prefix(context) == ""
    assert module.prefix(replace(context, values=("dca",))) == "dca: "


def test_a_trial_whose_run_was_made_just_before_a_kill_is_known_without_its_parameters(begun):
    context, _ = begun
    tags = {"dca.trial": "0", "dca.values": '{"train.learning_rate": 0.001}'}
    run = context.store.create("trial", "made", "made", parent=context.run_id, tags=tags)
    (trial,) = trials_of(context)
    assert (trial.run_id, trial.state, trial.tokens, trial.curve) == (run, None, 0, {})
    assert trial.values == {"train.learning_rate": 0.001}


def test_what_the_recorder_writes_of_a_trial_is_what_a_resumed_search_reads(begun):
    context, needs = begun
    recorder = recorder_of(context, needs)
    folder = context.storage / "trials" / context.run_id / "trial-0000"
    folder.mkdir(parents=True)
    runs = [recorder.open_run(number, VALUES).result().run_id for number in range(4)]
    for number in (0, 1, 3):
        recorder.write(number, [ROW])
    recorder.end_trial(0, TrialOutcome("complete", objective=3.5, last_row=ROW))
    recorder.end_trial(1, TrialOutcome("pruned", objective=3.5, last_row=ROW))
    recorder.end_trial(2, TrialOutcome("failed", reason="diverged at step 3"))
    close(recorder)
    trials = trials_of(context)
    assert [trial.run_id for trial in trials] == runs
    assert [trial.state for trial in trials] == ["complete", "pruned", "failed", None]
    assert [trial.status for trial in trials] == ["FINISHED", "KILLED", "FAILED", "KILLED"]
    assert [trial.objective for trial in trials] == [3.5, 3.5, None, None]
    assert [trial.reason for trial in trials] == ["", "", "diverged at step 3", ""]
    assert [trial.curve for trial in trials] == [{1024: 3.5}, {1024: 3.5}, {}, {1024: 3.5}]
    assert all(trial.values == VALUES for trial in trials)
    assert not folder.exists()


def test_an_unfinished_trial_keeps_its_run_and_its_rows(begun):
    context, needs = begun
    first = recorder_of(context, needs)
    run = first.open_run(0, VALUES).result()
    first.write(0, [ROW])
    close(first)
    again = recorder_of(context, needs)
    assert again.open_run(0, VALUES).result() == run  # of the same key
    assert re.fullmatch("[0-9a-f]{32}", run.key)
    again.write(0, [ROW, ROW | {"step": 8, "tokens": 2048}])
    again.end_trial(0, TrialOutcome("complete", objective=3.5, last_row=ROW | {"step": 8}))
    close(again)
    (trial,) = trials_of(context)
    assert (trial.run_id, trial.status, trial.tokens) == (run.run_id, "FINISHED", 2048)
    points = context.store.client.get_metric_history(run.run_id, "train_bits_per_byte")
    assert [point.step for point in points] == [4, 8]


def test_a_complete_search_runs_nothing_and_is_summarized(begun, monkeypatch, tmp_path, capsys):
    context, needs = begun
    recorder = recorder_of(context, needs)
    for number, bits in enumerate((3.5, 3.0)):
        recorder.open_run(number, VALUES)
        row = ROW | {"val_bits_per_byte": bits}
        recorder.write(number, [row])
        recorder.end_trial(number, TrialOutcome("complete", objective=bits, last_row=row))
    failed = recorder.open_run(2, VALUES).result().run_id
    recorder.end_trial(2, TrialOutcome("failed", reason="MemoryError"))
    close(recorder)
    context.store.client.update_run(failed, status="RUNNING")  # killed between state and status
    monkeypatch.setattr(module, "run_trials", lambda *_: pytest.fail("a trial was run"))
    waited = waits(context, monkeypatch)
    searched = search(context, needs)
    assert searched.trials == {"complete": 2, "pruned": 0, "failed": 1}
    assert "  done: 3 of 3 trials, 1 of them failed\n" in capsys.readouterr().out
    fewer = context.config.replace({"search.trials": 1})
    assert search(replace(context, config=fewer), needs) == searched
    assert "  done: 3 of 3 trials, 1 of them failed\n" in capsys.readouterr().out
    store = context.store
    assert store.client.get_run(failed).info.status == "FAILED"
    found = store.client.get_run(context.run_id)
    assert (found.data.metrics["tokens"], found.data.metrics["failed"]) == (2048, 1)
    path = store.client.download_artifacts(context.run_id, "study.db", tmp_path)
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{path}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "FAIL"]
    chosen = select(context, StageResults({"search": searched}))
    assert (chosen.trial, chosen.objective) == (1, 3.0)
    assert waited == [
        *2 * ["search: reading the trials", "search: storing what came out of the search"],
        "select: reading the trials",
    ]
    assert store.client.get_run(chosen.run_id).data.tags["dca.best"] == "true"
    assert store.client.get_run(context.run_id).data.tags["dca.best_run"] == chosen.run_id


@pytest.mark.parametrize("limit", [20, None])
def test_the_reason_of_a_search_that_ends_without_its_trials_is_shown(
    begun, monkeypatch, capsys, limit
):
    context, needs = begun
    config = context.config.replace({"search.max_seconds": limit})
    context = replace(context, config=config)
    monkeypatch.setattr(module, "run_trials", lambda *_: None)
    why = r"no trial began within search\.max_s" if limit else "no valid point of search.space was"
    with pytest.raises(PipelineError, match=why):
        search(context, needs)
    recorder = recorder_of(context, needs)
    recorder.open_run(0, VALUES)
    recorder.write(0, [ROW])
    recorder.end_trial(0, TrialOutcome("complete", objective=3.5, last_row=ROW))
    close(recorder)
    assert search(context, needs).trials["complete"] == 1
    early = "  ended after 1 of 3 trials: no further valid point was found\n"
    assert early in capsys.readouterr().out
    start(context, needs, 21)
    search(context, needs)
    assert (early in capsys.readouterr().out) is (limit is None)


def test_a_search_of_failed_trials_is_an_error_with_their_reasons(begun, monkeypatch):
    context, needs = begun
    monkeypatch.setattr(module, "run_trials", lambda *_: None)
    recorder = recorder_of(context, needs)
    for number in range(3):
        recorder.open_run(number, VALUES)
        recorder.end_trial(number, TrialOutcome("failed", reason=f"reason {number}"))
    close(recorder)
    with pytest.raises(PipelineError, match=r"every trial failed.*\n  trial 0: reason 0\n"):
        search(context, needs)


def test_the_winner_is_one_of_the_trials_that_were_selected(begun):
    context, needs = begun
    recorder = recorder_of(context, needs)
    for number, bits in enumerate((3.5, 3.0, 3.2)):
        recorder.open_run(number, VALUES)
        recorder.write(number, [ROW | {"val_bits_per_byte": bits}])
        recorder.end_trial(number, TrialOutcome("complete", objective=bits, last_row=ROW))
    close(recorder)
    for selection, winner in (("0-2", 1), ("0,2", 2), ("0", 0)):
        searched = Searched(context.run_id, {"complete": 3}, (), selection)
        selected = select(context, StageResults({"search": searched}))
        assert selected.trial == winner
        SELECT.verify(context.store, selected)
    context.store.client.delete_run(selected.run_id)
    with pytest.raises(PipelineError, match="the run of the winner, trial 0, was deleted"):
        SELECT.verify(context.store, selected)


def test_the_duration_of_a_search_is_stored_every_five_seconds(begun, monkeypatch):
    context, needs = begun
    now = 50.0
    monkeypatch.setattr(searcher_module.time, "monotonic", lambda: now)
    recorder = recorder_of(context, needs)
    now = 100.0  # Ray has started, which is no part of it
    recorder.step_ended()
    recorder.clock.start()
    for moment, expected in ((105.0, []), (105.5, [5.5]), (110.5, [5.5]), (111.0, [5.5, 11.0])):
        now = moment
        recorder.step_ended()
        recorder.open_run(0, VALUES).result()  # behind what is queued
        stored = context.store.history(context.run_id, "seconds")
        assert list(stored.values()) == expected
    now = 112.25
    close(recorder)
    assert list(context.store.history(context.run_id, "seconds").items())[-1] == (12, 12.25)
