import json

import pytest

from pipelines.cluster.trial import TrialOutcome
from pipelines.console.progress import Progress
from pipelines.console.updates import OutputMode, ProgressUpdate
from pipelines.experiment import read_experiment
from pipelines.search import jobs_progress
from pipelines.search.jobs_progress import JobsProgress
from pipelines.search.progress import SearchProgress
from pipelines.tracking.trials import StoredTrial

PRUNED = TrialOutcome("pruned", objective=2.9, last_row={"step": 4, "time": 1.0})


class Screen(Progress):
    """Keeps what it was shown."""

    now: ProgressUpdate

    def update(self, now: ProgressUpdate) -> None:
        self.now = now


@pytest.fixture
def screen() -> Screen:
    return Screen(OutputMode.JSON)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, which a test sets."""
    now = [100.0]
    monkeypatch.setattr(jobs_progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def board(data, screen, clock) -> SearchProgress:
    """Of four trials of 4,096 bytes; two were there before."""
    data["search"] = {"space": {"model.depth": {"int": [1, 2]}}, "trials": 4}
    stored = [
        StoredTrial(0, "a", {}, state="complete", objective=3.0),
        StoredTrial(1, "b", {}, state="failed"),
        StoredTrial(2, "c", {}),
    ]
    task = read_experiment(data, source="test").search_task()
    return SearchProgress(task, stored, JobsProgress(screen, stage="search", unit="trials"))


def test_the_trials_of_earlier_starts_count(board, screen):
    board.started(2, {})
    assert screen.now.text == (
        "search: 2/4 trials (1 complete, 1 failed), 1 running, best 3.0000 (trial 0)"
    )
    assert screen.now.data["trials"] == {"of": 4, "complete": 1, "pruned": 0, "failed": 1}
    assert screen.now.data["seconds_left"] is None


def test_speed_is_that_of_all_running_trials_and_the_time_left_that_of_the_rest(
    board, screen, clock
):
    board.started(2, {})
    board.started(3, {})
    clock[0] += 30
    board.reported(2, 1024, 3.5, 400.0)
    board.reported(3, 2048, 2.5, 600.0)
    now = screen.now
    assert (now.data["best"], now.data["best_trial"]) == (2.5, 3)
    assert now.data["bytes_per_second"] == 1000.0
    assert now.data["seconds_left"] == pytest.approx(30 / 0.75 * 1.25)
    assert now.data["running"] == {2: 0.25, 3: 0.5}
    assert now.note == "1 complete, 1 failed, 2 running, best 2.5000 (trial 3), 1,000 bytes/s"
    assert [(bar.name, bar.share) for bar in now.bars] == [
        ("search", 2.75 / 4),
        ("trial 2", 0.25),
        ("trial 3", 0.5),
    ]
    assert list(now.curve) == [3.0, 3.0, 2.5]


def test_the_time_left_after_a_resume_follows_from_what_this_session_has_trained(
    data, screen, clock
):
    data["search"] = {"space": {"model.depth": {"int": [1, 2]}}, "trials": 8}
    task = read_experiment(data, source="test").search_task()
    stored = [StoredTrial(number, "a", {}, tokens=3072) for number in (0, 1)]
    board = SearchProgress(task, stored, JobsProgress(screen, stage="search", unit="trials"))
    for number in (0, 1):
        board.started(number, {})
        board.reported(number, 3072, 3.0, 1.0)  # its history, again
    assert screen.now.data["seconds_left"] is None
    clock[0] += 60
    board.reported(0, 3584, 3.0, 1.0)
    assert screen.now.data["seconds_left"] == pytest.approx(60 / 0.125 * (8 - 0.875 - 0.75))
    board.crashed(1, "MemoryError", 1)
    board.started(1, {})
    clock[0] += 60
    board.ended(0, {}, "run", PRUNED)
    assert screen.now.data["seconds_left"] == pytest.approx(120 / 0.25 * 7)
    board.reported(1, 1024, 3.0, 1.0)  # its last checkpoints are gone
    board.reported(1, 2048, 3.0, 1.0)
    assert screen.now.data["seconds_left"] == pytest.approx(120 / 0.5 * 6.5)


def test_a_trial_that_ended_or_crashed_is_no_longer_running(board, screen, clock):
    board.started(2, {})
    board.started(3, {})
    clock[0] += 10
    board.reported(2, 1024, 2.9, 400.0)
    board.crashed(3, "MemoryError", 1)
    board.ended(2, {}, "run", PRUNED)
    assert screen.now.text == (
        "search: 3/4 trials (1 complete, 1 pruned, 1 failed), 0 running, best 2.9000 (trial 2), "
        "about 0:10 left"
    )
    assert len(screen.now.bars) == 1


def test_a_machine_reads_an_event_for_each_change_of_a_trial(board, clock, capsys):
    clock[0] += 10
    board.started(2, {"train.learning_rate": 0.0123456})
    board.noted(2, "resumes from step 3/4")
    board.crashed(2, "MemoryError", 1)
    board.ended(2, {}, "run", PRUNED)
    board.ended(3, {}, "other", TrialOutcome("failed", reason="diverged at step 3"))
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {event["event"] for event in events} == {"trial"}
    assert [event["state"] for event in events] == [
        *("started", "note", "crashed", "pruned", "failed"),
    ]
    _, note, crash, pruned, failed = events
    assert note["text"] == "resumes from step 3/4"
    assert (crash["reason"], crash["retry"]) == ("MemoryError", 1)
    assert (pruned["run"], pruned["steps"], pruned["best_val_bits_per_byte"]) == ("run", 4, 2.9)
    assert failed["reason"] == "diverged at step 3"
    assert "best_val_bits_per_byte" not in failed


def test_a_person_reads_how_a_trial_ended_and_what_it_tried(board, screen, clock, capsys):
    clock[0] += 10
    screen.mode = OutputMode.TEXT
    values = {"train.learning_rate": 0.0123456, "model.residual": "dca"}
    board.ended(2, values, "run", PRUNED)
    board.crashed(3, "MemoryError", 1)
    pruned, crashed = capsys.readouterr().out.splitlines()
    tried = "(train.learning_rate=0.0123, model.residual=dca)"
    assert pruned == f"  trial 2 pruned: 4 steps, best 2.9000 bits per byte  {tried}"
    assert crashed == (
        "  trial 3 crashed: MemoryError; resumes from its last checkpoint (retry 1 of 2)"
    )


def test_a_trial_beyond_its_budget_is_whole_and_equal_results_keep_the_first(board, screen, clock):
    board.started(2, {})
    board.started(3, {})
    clock[0] += 10
    board.reported(2, 9999, 2.5, 1.0)
    board.reported(3, 4096, 2.5, 1.0)
    assert screen.now.data["running"] == {2: 1.0, 3: 1.0}
    assert (screen.now.data["best"], screen.now.data["best_trial"]) == (2.5, 2)
    assert list(screen.now.curve) == [3.0, 2.5, 2.5]
    assert screen.now.bars[1].note == "2.5000, 1 bytes/s"


def test_the_searches_of_several_arms_have_one_status_and_their_lines_name_the_arm(
    data, screen, clock, capsys
):
    data["search"] = {"space": {"model.depth": {"int": [1, 2]}}, "trials": 4}
    task = read_experiment(data, source="test").search_task()
    jobs = JobsProgress(screen, stage="search", unit="trials")
    stored = [StoredTrial(0, "a", {}, state="complete", objective=3.0)]
    plain, deep = (
        SearchProgress(task, stored, jobs, "plain"),
        SearchProgress(task, [], jobs, "deep"),
    )
    screen.mode = OutputMode.TEXT
    plain.started(1, {})
    deep.started(0, {})
    clock[0] += 10
    deep.reported(0, 2048, 2.5, 600.0)
    plain.noted(1, "resumes from step 3/4")
    plain.left_out({}, "no such model")
    assert [(bar.name, bar.share) for bar in screen.now.bars] == [
        *(("search", 1.5 / 8), ("trial 0 of deep", 0.5), ("trial 1 of plain", 0.0)),
    ]
    assert screen.now.data["running"] == {"plain 1": 0.0, "deep 0": 0.5}
    assert (screen.now.data["best"], screen.now.data["best_trial"]) == (2.5, "deep 0")
    plain.ended(1, {"model.depth": 2}, "run", PRUNED)
    deep.crashed(0, "MemoryError", 1)
    deep.summarize()
    plain.summarize()
    assert screen.now.text == (
        "search: 2/8 trials (1 complete, 1 pruned), 1 running, best 2.5000 (trial 0 of deep), "
        "about 0:37 left"
    )
    assert capsys.readouterr().out.splitlines() == [
        "  trial 1 of plain: resumes from step 3/4",
        "  plain: invalid points of the space are left out: no such model  ()",
        "  trial 1 of plain pruned: 4 steps, best 2.9000 bits per byte  (model.depth=2)",
        "  trial 0 of deep crashed: MemoryError; resumes from its last checkpoint (retry 1 of 2)",
        "  plain: proposals that were not run: 1 invalid",
    ]
    screen.mode = OutputMode.JSON
    deep.noted(0, "resumes")
    (event,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (event["trial"], event["arm"]) == (0, "deep")
