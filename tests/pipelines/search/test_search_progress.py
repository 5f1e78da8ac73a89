import pytest

from pipelines.console.progress import Progress
from pipelines.console.updates import ProgressUpdate
from pipelines.experiment import read_experiment
from pipelines.search import progress
from pipelines.search.progress import SearchProgress
from pipelines.search.resume import StoredTrial


class Screen(Progress):
    """Keeps what it was shown."""

    now: ProgressUpdate

    def live(self, now: ProgressUpdate) -> None:
        self.now = now


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, which a test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
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
    return SearchProgress(read_experiment(data, source="test"), stored, screen)


def test_what_earlier_starts_have_found_counts(board, screen):
    board.started(2)
    assert screen.now.text == (
        "search: 2/4 trials (1 complete, 1 failed), 1 running, best 3.0000 (trial 0)"
    )
    assert screen.now.data["trials"] == {"of": 4, "complete": 1, "pruned": 0, "failed": 1}
    assert screen.now.data["seconds_left"] is None


def test_speed_is_that_of_all_running_trials_and_the_time_left_that_of_the_rest(
    board, screen, clock
):
    board.started(2)
    board.started(3)
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


def test_a_trial_that_ended_or_crashed_is_no_longer_running(board, screen, clock):
    board.started(2)
    board.started(3)
    clock[0] += 10
    board.reported(2, 1024, 2.9, 400.0)
    board.crashed(3)
    board.ended(2, "pruned")
    assert screen.now.text == (
        "search: 3/4 trials (1 complete, 1 pruned, 1 failed), 0 running, best 2.9000 (trial 2), "
        "about 0:10 left"
    )
    assert len(screen.now.bars) == 1
