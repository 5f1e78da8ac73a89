import itertools
import os
import signal
import threading
import time
from dataclasses import replace

import pytest

from pipelines.console import retries
from pipelines.console.retries import RetryPolicy, if_longer


class Work:
    """Fails some times, then returns what it was called with."""

    def __init__(self, failures: int, error: type[Exception] = ConnectionError) -> None:
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self, *args: int, **kwargs: int) -> tuple:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error(f"failure {self.calls}")
        return args, kwargs


POLICY = RetryPolicy(lambda error: isinstance(error, ConnectionError), pause_seconds=0)


def test_a_transient_failure_is_repeated_and_the_first_one_logged(caplog):
    work = Work(2)
    assert replace(POLICY, name="store").call(work, 1, b=2) == ((1,), {"b": 2})
    assert work.calls == 3
    assert [record.message for record in caplog.records] == ["store: failure 1; trying again"]


def test_failures_are_logged_again_when_the_last_line_is_long_ago(caplog, monkeypatch):
    monkeypatch.setattr(retries, "LOG_SECONDS", 0.0)
    replace(POLICY, name="store").call(Work(2))
    first, second = (record.message for record in caplog.records)
    assert first == "store: failure 1; trying again"
    assert second == "store: failure 2; trying again (for 0 s now)"


def test_no_pause_without_a_line_is_longer_than_that_between_two_lines(caplog, monkeypatch):
    monkeypatch.setattr(retries, "LOG_SECONDS", 0.1)
    slow = replace(POLICY, name="store", pause_seconds=0.06, random_pauses=False)
    replace(slow, max_pause_seconds=0.06).call(Work(3))
    assert len(caplog.records) == 3


def test_only_the_first_line_of_a_failure_is_logged(caplog):
    policy = RetryPolicy(lambda _: True, pause_seconds=0, name="store")
    policy.call(Work(1, lambda text: ValueError(f"{text} {'x' * 300}\nSELECT 1")))
    (record,) = caplog.records
    assert record.message.startswith("store: failure 1 xxx")
    assert len(record.message) == len("store: ; trying again") + 200


def test_pauses_that_are_not_random_double(monkeypatch):
    pauses = []
    monkeypatch.setattr("tenacity.nap.time.sleep", pauses.append)
    replace(POLICY, pause_seconds=1.0, random_pauses=False).call(Work(4))
    assert pauses == [1, 2, 4, 8]


def test_without_a_name_nothing_is_logged(caplog):
    POLICY.call(Work(1))
    assert caplog.records == []


def test_another_failure_is_final_at_once():
    work = Work(1, ValueError)
    with pytest.raises(ValueError, match="failure 1"):
        POLICY.call(work)
    assert work.calls == 1


def test_the_last_failure_is_raised_after_so_many_attempts_or_seconds():
    work = Work(9)
    with pytest.raises(ConnectionError, match="failure 3"):
        replace(POLICY, max_attempts=3).call(work)
    with pytest.raises(ConnectionError, match="failure 4"):
        replace(POLICY, max_seconds=0).call(work)


def test_a_cancelled_policy_ends_its_pause_and_repeats_nothing():
    cancelled = threading.Event()
    work, policy = Work(9), replace(POLICY, pause_seconds=1e4, max_pause_seconds=1e4)
    timer = threading.Timer(0.2, cancelled.set)
    timer.start()
    started = time.monotonic()
    with pytest.raises(ConnectionError):
        replace(policy, cancelled=cancelled).call(work)
    assert time.monotonic() - started < 60
    assert work.calls == 2
    with pytest.raises(ConnectionError, match="failure 3"):
        replace(policy, cancelled=cancelled).call(work)


def test_pauses_double_up_to_a_minute(monkeypatch):
    pauses = []
    monkeypatch.setattr("tenacity.nap.time.sleep", pauses.append)
    RetryPolicy(lambda _: True, random_pauses=False).call(Work(8))
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_random_pauses_are_up_to_those_that_double(monkeypatch):
    drawn = []
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    monkeypatch.setattr("random.uniform", lambda *between: drawn.append(between) or 0.0)
    RetryPolicy(lambda _: True).call(Work(8))
    assert drawn == [(0, longest) for longest in (1, 2, 4, 8, 16, 32, 60, 60)]


def test_a_policy_without_limits_goes_on_for_ever(monkeypatch):
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    assert POLICY.max_seconds is POLICY.max_attempts is None
    work = Work(5000)
    POLICY.call(work)
    assert work.calls == 5001


def test_of_blocks_in_one_another_those_that_take_too_long_are_told_once():
    told = {name: threading.Event() for name in ("long", "short")}
    calls = []

    def tell(name: str) -> None:
        calls.append(name)
        told[name].set()

    with if_longer(60, lambda: tell("long")):
        with if_longer(0.01, lambda: tell("short")):  # although the other was there first
            assert told["short"].wait(10)
        with if_longer(0.02, lambda: tell("short")):
            pass
        with pytest.raises(KeyError), if_longer(0.02, lambda: tell("long")):
            raise KeyError
        time.sleep(0.1)
    assert calls == ["short"]
    with if_longer(0.01, lambda: tell("long")):
        assert told["long"].wait(10)
    assert calls == ["short", "long"]


def test_a_block_is_told_again_after_as_many_seconds_as_the_call_returns():
    calls, third = [], threading.Event()

    def tell() -> float | None:
        calls.append(time.monotonic())
        if len(calls) < 3:
            return 0.05
        third.set()
        return None

    with if_longer(0.01, tell):
        assert third.wait(10)
        time.sleep(0.1)
    assert len(calls) == 3
    assert all(later - before >= 0.05 for before, later in itertools.pairwise(calls))


def test_many_blocks_are_watched_by_one_thread_which_ends():
    before = set(threading.enumerate())
    for _ in range(100):
        with if_longer(0.05, pytest.fail):
            started = set(threading.enumerate()) - before
            assert len(started) <= 1
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.process
def test_a_fork_watches_its_own_blocks_whatever_its_parent_did():
    with retries._watcher._changed:
        if not (child := os.fork()):
            signal.alarm(10)
            told = threading.Event()
            with if_longer(0.01, told.set):
                os._exit(0 if told.wait(10) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_call_that_fails_keeps_no_other_block_from_being_watched():
    called = threading.Event()
    with if_longer(0.001, lambda: 1 / 0), if_longer(0.01, called.set):
        assert called.wait(10)
