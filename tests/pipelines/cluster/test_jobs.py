"""Groups of trials in one Tune run; Tune itself runs in the tests of the commands."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
from ray.tune.schedulers import FIFOScheduler

from pipelines.cluster.jobs import FINISHED, GroupEvents, JobGroup, ScheduleEach, TakeTurns
from pipelines.console.errors import PipelineError
from pipelines.training.config import Resources, TrainingRun

BASE = TrainingRun.model_construct(resources=Resources())


class Trials:
    """A group that counts its trials down, and keeps the calls of all its parts."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.waits = False
        """Whether the next trial cannot start yet."""
        self.running = 0
        self.calls: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        self.checks = 0
        """How often the code was compared."""

    def check(self) -> None:
        self.checks += 1
        if self.error:
            raise self.error

    def start_clock(self) -> None:
        self.calls.append(("start_clock",))

    def suggest(self, trial_id: str, *, wait: bool) -> dict[str, Any] | str | None:
        self.calls.append(("suggest", wait))
        if self.left and self.waits and not wait:
            return None
        if not self.left:
            return None if self.running else FINISHED
        self.left, self.running = self.left - 1, self.running + 1
        return {"number": self.left}

    def on_trial_result(self, *given: Any) -> str:
        self.calls.append(("result", *given))
        return "STOP"

    def on_trial_complete(self, *given: Any) -> None:
        self.calls.append(("complete", *given))
        self.running -= 1
        if self.error:
            raise self.error

    def on_step_end(self, *given: Any) -> None:
        self.calls.append(("step", *given))


def groups_of(**left: int) -> tuple[dict[str, Trials], dict[str, JobGroup]]:
    trials = {name: Trials(count) for name, count in left.items()}
    made = {
        name: JobGroup(BASE, Path(name), one, one, one.check, one) for name, one in trials.items()
    }
    return trials, made


def test_groups_take_turns_until_all_have_ended():
    trials, groups = groups_of(a=3, b=1, c=2)
    searcher = TakeTurns(groups)
    found = [searcher.suggest(str(number)) for number in range(6)]
    assert [one["group"] for one in found] == ["a", "b", "c", "a", "c", "a"]
    assert [one["number"] for one in found] == [2, 0, 1, 1, 0, 0]
    assert searcher.suggest("6") is None  # one may crash, and start again
    for number in range(5):
        searcher.on_trial_complete(str(number), {"done": True})
    assert searcher.suggest("7") is None
    searcher.on_trial_complete("5", error=True)
    trials["a"].left = 1  # its retry
    assert searcher.suggest("8") == {"group": "a", "number": 0}
    searcher.on_trial_complete("8")
    assert searcher.suggest("9") == FINISHED
    assert [call for call in trials["c"].calls if call[0] == "complete"] == [
        *(("complete", "2", {"done": True}, False), ("complete", "4", {"done": True}, False)),
    ]


def test_a_group_whose_trial_crashed_is_next():
    trials, groups = groups_of(a=1, b=3, c=2)
    searcher = TakeTurns(groups)
    assert [searcher.suggest(str(number))["group"] for number in range(2)] == ["a", "b"]
    trials["a"].left = 1  # its retry
    searcher.on_trial_complete("0", error=True)
    found = [searcher.suggest(str(number))["group"] for number in range(2, 6)]
    assert found == ["a", "c", "b", "c"]


def test_a_single_group_may_have_no_name():
    _, groups = groups_of(**{"": 1})
    searcher = TakeTurns(groups)
    assert searcher.suggest("0") == {"group": "", "number": 0}
    searcher.on_trial_complete("unknown")
    assert searcher.suggest("1") is None
    searcher.on_trial_complete("0")
    assert searcher.suggest("1") == FINISHED


def test_a_group_that_waits_for_its_run_holds_up_no_other():
    trials, groups = groups_of(a=2, b=2)
    searcher = TakeTurns(groups)
    trials["a"].waits = True
    assert searcher.suggest("0")["group"] == "a"  # nothing runs: it has waited
    assert searcher.suggest("1")["group"] == "b"
    assert searcher.suggest("2")["group"] == "b"
    assert trials["a"].calls[-1] == ("suggest", False)
    assert searcher.suggest("3") is None
    trials["a"].waits = False
    assert searcher.suggest("4")["group"] == "a"


def test_the_clock_of_each_group_starts_with_the_first_trial_of_any():
    trials, groups = groups_of(a=2, b=2)
    TakeTurns(groups).suggest("0")
    assert [one.calls[0] for one in trials.values()] == [("start_clock",)] * 2


def test_results_and_events_are_those_of_the_trials_group():
    trials, groups = groups_of(a=1, b=1)
    searcher, scheduler, events = TakeTurns(groups), ScheduleEach(groups), GroupEvents(groups)
    configs = [searcher.suggest(str(number)) for number in range(2)]
    trial = SimpleNamespace(trial_id="1", config={**configs[1], "values": {}})
    searcher.on_trial_result("1", {"tokens": 3})
    assert scheduler.on_trial_result(None, trial, {"tokens": 4}) == "STOP"
    events.on_trial_result(0, [], trial, {"tokens": 5, "pid": 1})
    events.on_step_end(0, [])
    assert trials["b"].calls[-4:] == [
        *(("result", "1", {"tokens": 3}), ("result", None, trial, {"tokens": 4})),
        *(("result", 0, [], trial, {"tokens": 5, "pid": 1}), ("step", 0, [])),
    ]
    assert trials["a"].calls[-1] == ("step", 0, [])
    assert not any(call[0] == "result" for call in trials["a"].calls)


@pytest.mark.parametrize("kind", [TakeTurns, ScheduleEach, GroupEvents])
def test_what_tune_is_given_is_pickled_whatever_the_groups_hold(kind):
    """A Tuner pickles it as it is made; a study, and so median stopping, has a lock."""
    trials, groups = groups_of(a=1)
    trials["a"].lock = threading.RLock()
    assert cloudpickle.loads(cloudpickle.dumps(kind(groups)))


def test_each_group_has_a_scheduler_of_its_own():
    """Another group's trials neither stop a trial nor fill its rungs."""
    _, groups = groups_of(a=1, b=1)
    seen = []

    class Notes(FIFOScheduler):
        def __getattribute__(self, name: str) -> Any:
            seen.append(name) if name.startswith("on_trial") else None
            return super().__getattribute__(name)

    groups["b"] = JobGroup(BASE, Path("b"), None, None, None, Notes())
    scheduler = ScheduleEach(groups)
    trial = SimpleNamespace(trial_id="1", config={"group": "b"})
    scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, trial, {}) == "CONTINUE"
    scheduler.on_trial_error(None, trial)
    scheduler.on_trial_complete(None, trial, {})
    scheduler.on_trial_remove(None, trial)
    names = ("add", "result", "error", "complete", "remove")
    assert seen == [f"on_trial_{name}" for name in names]


def test_the_error_of_an_event_is_kept_for_whoever_runs_tune():
    trials, groups = groups_of(a=1)
    trials["a"].error = PipelineError("the store says no")
    events = GroupEvents(groups)
    with pytest.raises(PipelineError):
        events.on_trial_complete(0, [], SimpleNamespace(config={"group": "a"}))
    assert events.error is trials["a"].error


def test_the_code_is_compared_as_often_as_processes_import_it(monkeypatch):
    """Each process of trials once for a group and a kind, whose module it imports; each trial of
    several workers, which are new ones."""
    trials, groups = groups_of(a=1, b=1)

    def checks_after(*pids: int, names: str = "aaa", kinds: Sequence[str] = "") -> int:
        events, before = GroupEvents(groups), trials["a"].checks + trials["b"].checks
        for number, (pid, name) in enumerate(zip(pids, names, strict=False)):
            values = {"model.residual": kinds[number]} if kinds else {"train.seed": number}
            config = {"group": name, "values": values}
            trial = SimpleNamespace(trial_id=str(number), config=config)
            for _ in range(2):
                events.on_trial_result(0, [], trial, {"pid": pid})
        return trials["a"].checks + trials["b"].checks - before

    assert checks_after(1, 1, 2) == 2
    assert checks_after(1, 1, 1, names="aba") == 2
    assert checks_after(1, 1, 1, kinds=["dca", "standard", "dca"]) == 2
    several = BASE.model_copy(update={"resources": Resources(workers=2)})
    groups["a"] = replace(groups["a"], base=several)
    assert checks_after(1, 1, 2) == 3
    monkeypatch.setenv("RAY_ADDRESS", "host:1")  # whose nodes have a copy of the code
    assert checks_after(1, 2) == 0


def test_a_trial_that_may_have_run_edited_code_ends_the_run_and_is_not_stored():
    trials, groups = groups_of(a=1)
    trials["a"].error = PipelineError("dca/mix.py was edited since this command began")
    events = GroupEvents(groups)
    trial = SimpleNamespace(trial_id="0", config={"group": "a", "values": {}})
    for event in (partial(events.on_trial_result, result={"pid": 1}), events.on_trial_error):
        with pytest.raises(PipelineError, match="edited"):
            event(0, [], trial)
    assert events.error is trials["a"].error
    assert not trials["a"].calls
