"""The estimate of a sweep's cost: a simulated schedule, and times of earlier runs."""

import os
from pathlib import Path

import pytest

from pipelines.cluster.capacity import Node
from pipelines.compat.ray import NICENESS
from pipelines.cost import estimate as estimates
from pipelines.cost import timing
from pipelines.cost.earlier import EarlierRuns
from pipelines.cost.estimate import estimate
from pipelines.cost.simulation import draw_trials, simulate, step_flops
from pipelines.cost.timing import time_steps
from pipelines.engine import instances
from pipelines.engine.cache import PlannedStage
from pipelines.engine.stage import Stage
from pipelines.experiment import Experiment, read_experiment
from pipelines.search.results import Selected
from pipelines.tracking.schema import HOST_TAG, STATE_TAG, TRIAL_TAG, VALUES_TAG
from pipelines.tracking.trials import STATUS_OF_STATE, StoredTrial
from pipelines.tracking.writer import Writer
from tests.pipelines.search.trials import evaluations

SPACE = {"train.learning_rate": {"log_uniform": [1e-4, 1e-2]}}
SIZES = {"train": 50_000, "validation": 5_000, "test": 5_000}


@pytest.fixture
def searched(data) -> Experiment:
    """Six trials of 16 steps, with an evaluation every 4."""
    none = {"name": "none"}
    data["search"] = {"space": SPACE, "trials": 6, "scheduler": none}
    return read_experiment(data, source="test")


def run(experiment: Experiment, stored=(), concurrent: int = 2, **options):
    """A step takes a second."""
    task = experiment.search_task()
    trials = draw_trials(task, stored, seed=0)
    return simulate(task, stored, trials, lambda run: run.train.steps, concurrent, **options)


def test_without_stopping_every_trial_takes_its_time(searched):
    assert run(searched).seconds == pytest.approx(3 * 16)
    assert run(searched, concurrent=1).seconds == pytest.approx(6 * 16)


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_stopping_saves_time_in_every_order(searched, scheduler):
    some = searched.replace({"search.scheduler.name": scheduler, "search.trials": 16})
    full = run(searched.replace({"search.trials": 16})).seconds
    found = {run(some, seed=seed).seconds for seed in range(8)}
    assert max(found) < full
    assert min(found) > 4 * 16 / 2
    assert len(found) > 1


def test_the_same_seed_simulates_the_same_search(searched):
    asha = searched.replace({"search.scheduler.name": "asha"})
    assert run(asha, seed=3) == run(asha, seed=3)


def test_a_search_that_was_begun_costs_the_remainder(searched):
    values, batch = {"train.learning_rate": 1e-3}, 256
    curve = evaluations({step * batch: 2.0 for step in (4, 8, 12, 16)})
    stored = [
        StoredTrial(0, "a", values, "complete", 2.0, tokens=16 * batch, evaluations=curve),
        StoredTrial(1, "b", values, tokens=12 * batch),
    ]
    found = run(searched, stored, concurrent=1)
    assert found.trials == 5
    assert found.seconds == pytest.approx(4 + 4 * 16)


def test_trials_end_where_those_that_ended_did(searched):
    values, batch = {"train.learning_rate": 1e-3}, 256
    stored = [
        StoredTrial(0, "a", values, "pruned", 2.0, tokens=4 * batch),
        StoredTrial(1, "b", values, "pruned", 2.0, tokens=8 * batch),
    ]
    asha = searched.replace({"search.scheduler.name": "asha"})
    seconds = {run(asha, stored, concurrent=1, seed=seed).seconds for seed in range(20)}
    assert min(seconds) >= 4 * 4
    assert max(seconds) <= 4 * 8
    assert len(seconds) > 2


def test_no_trial_starts_beyond_a_budget(searched):
    assert run(searched.replace({"search.max_tokens": 1}), concurrent=1).trials == 1
    by_clock = searched.replace({"search.max_seconds": 17})
    assert run(by_clock, concurrent=1).trials == 2
    assert run(by_clock, concurrent=1, elapsed=10).trials == 1


def test_larger_trials_take_longer_between_the_timed_sizes(experiment):
    small, between, deep = (experiment.training_run({"model.depth": depth}) for depth in (2, 3, 4))
    times = estimates.Times("trial", 1000, {small: 1.0, deep: 2.0})
    assert (times.of_step(small), times.of_step(deep)) == (1.0, 2.0)
    assert 1.0 < times.of_step(between) < 2.0
    assert step_flops(small) < step_flops(between) < step_flops(deep)
    assert 2 * 16 < times.of_run(deep) < 2 * 16 + 0.4 + 4 * 1000


def test_steps_are_timed_in_processes_of_their_own(experiment):
    two = experiment.training_run({"resources.workers": 2})
    small, large = time_steps([two, two.replace({"model.dim": 64, "model.depth": 8})], processes=1)
    assert 0 < small < large


def test_a_process_has_the_niceness_and_the_gpus_of_a_worker(experiment, monkeypatch):
    run = experiment.training_run({"resources.gpus_per_worker": 0.5})
    added = []
    monkeypatch.setattr(timing.os, "nice", lambda more: added.append(more) or 10)
    monkeypatch.setattr(timing, "_time", lambda *_: 1.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv(NICENESS, "15")
    visible = []
    for number in range(4):
        timing._time_all([run], Path("text"), number)
        visible.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert visible == ["0", "0", "1", "1"]
    assert added == 4 * [0, 5]
    timing._time_all([run.replace({"resources.gpus_per_worker": 2})], Path("text"), 1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    timing._time_all([experiment.training_run()], Path("text"), 1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.fixture
def planned(searched) -> list[PlannedStage]:
    """Nothing is cached."""
    names = ("search", "select", "fit", "evaluate")
    return [
        PlannedStage(instances.Node(Stage(name, Selected, run=lambda *_: None))) for name in names
    ]


@pytest.fixture
def cluster():
    return [Node("here", 2)]


@pytest.fixture
def timed(monkeypatch) -> list[int]:
    """How many sizes were timed, at each time."""
    found = []

    def time_some(runs, *, processes):
        found.append(len(runs))
        return [0.5 for _ in runs]

    monkeypatch.setattr(estimates, "time_steps", time_some)
    return found


def discard(text: str) -> None:
    """A log that is not read."""


def names(lines) -> list[str]:
    """The first words of the lines below the table's header."""
    return [line.split()[0] for line in lines if line.strip()][1:]


def test_without_earlier_runs_steps_are_timed(searched, planned, tracking, timed, cluster):
    lines = estimate(searched, SIZES, planned, cluster, discard)
    assert timed == [1, 1]
    assert names(lines) == ["trial", "fit", "search", "fit", "all"]


def test_rows_of_the_table_are_named_by_what_differs(searched, planned, tracking, timed, cluster):
    space = {"model.depth": {"int": [2, 4]}}
    deep = searched.replace({"search.space": space, "search.trials": 6})
    lines = estimate(deep, SIZES, planned[:1], cluster, discard)
    assert timed == [3]
    assert [line.split("  ")[0] for line in lines[1:4]] == [f"trial depth {n}" for n in (2, 3, 4)]
    assert " 500 ms " in lines[1]


def test_stages_that_read_the_test_split_take_longer_for_a_longer_one(
    searched, planned, tracking, timed, cluster, monkeypatch
):
    monkeypatch.setattr(estimates, "format_duration", lambda seconds: f"{seconds:.1f}")
    totals = []
    for size in (0, 3 * 256 * 100):
        lines = estimate(searched, SIZES | {"test": size}, planned, cluster, discard)
        totals.append(float(lines[-1].split()[2]))
    assert totals[1] - totals[0] == pytest.approx(0.5 * 100, abs=0.2)


class Stored:
    """A pipeline with a search of two trials, a fit and an evaluation."""

    def __init__(self, store, experiment: Experiment) -> None:
        self.store, self.writer = store, Writer(store)
        data = experiment.model_dump(mode="json")
        self.pipeline = store.create("pipeline", "key", "pipeline", params=data)
        self.search = store.create("search", "search", "search", parent=self.pipeline)
        for number in range(2):
            tags = {
                TRIAL_TAG: str(number),
                VALUES_TAG: '{"train.learning_rate": 0.001}',
                STATE_TAG: "pruned",
            }
            self.train("trial", str(number), self.search, experiment.training_run(), tags)
        self.train("fit", "fit", self.pipeline, experiment.fit_run())
        self.writer.close()
        store.end(self.search)
        self.evaluate = store.create("evaluate", "evaluate", "evaluate", parent=self.pipeline)
        store.end(self.evaluate)

    def train(self, kind: str, key: str, parent: str, training, tags=()) -> None:
        run = self.store.create(kind, key, key, parent=parent, params=training.params, tags=tags)
        row = {"step": 16, "time": 1.0, "tokens": training.train.tokens, "seconds": 4.0}
        self.writer.write(run, [{**row, "train_bits_per_byte": 2.0, "val_bits_per_byte": 2.0}])
        self.writer.finish(run, STATUS_OF_STATE["pruned"], {}, None)


def test_times_of_earlier_runs_are_taken_instead(
    searched, planned, store, timed, cluster, monkeypatch
):
    Stored(store, searched)
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")
    lines = estimate(searched, SIZES, planned, cluster, discard)
    assert timed == []
    assert lines[-1].startswith("all    about 0:")  # and no note about timed steps
    earlier = EarlierRuns(searched)
    assert earlier.step_seconds("trial", searched.training_run()) == pytest.approx(4 / 16)
    assert earlier.step_seconds("fit", searched.fit_run()) == pytest.approx(4 / 16)
    assert 0 <= earlier.stage_seconds("search") < 10
    assert 0 <= earlier.stage_seconds("evaluate") < 10
    assert earlier.stage_seconds("register") is None


def test_on_another_cluster_the_place_of_timed_steps_is_given(
    searched, planned, tracking, timed, cluster, monkeypatch
):
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")
    assert "RAY_ADDRESS" in estimate(searched, SIZES, planned, cluster, discard)[-1]


def test_a_stage_that_was_resumed_has_no_time(searched, store):
    stored = Stored(store, searched)
    for run in (stored.search, stored.evaluate):
        store.resume(run)
        store.end(run)
    earlier = EarlierRuns(searched)
    assert earlier.stage_seconds("search") is None
    assert earlier.stage_seconds("evaluate") is None


def test_a_search_takes_until_its_first_trial_however_that_ended(searched, store):
    Stored(store, searched)
    earlier = EarlierRuns(searched)
    (search,) = earlier._children("search", earlier._pipelines)
    first = min(trial.info.start_time for trial in earlier._children("trial", [search]))
    assert earlier.stage_seconds("search") == (first - search.info.start_time) / 1000


def test_nothing_is_left_of_a_search_whose_trials_have_ended(
    searched, planned, store, timed, cluster
):
    stored = Stored(store, searched)
    searched = searched.replace({"search.trials": 2})
    planned[0].run = store.client.get_run(stored.search)
    lines = estimate(searched, SIZES, planned, cluster, discard)
    assert names(lines) == ["fit", "search", "fit", "all"]
    assert "search about 0:00 (0:00 to 0:00)" in lines


def test_earlier_runs_of_another_size_of_other_resources_or_elsewhere_do_not_count(searched, store):
    stored = Stored(store, searched)
    other = searched.training_run({"model.dim": 32})
    assert EarlierRuns(searched).step_seconds("trial", other) is None
    more = searched.replace({"resources.cpus_per_worker": 2})
    assert EarlierRuns(more).step_seconds("trial", searched.training_run()) is None
    store.tag(stored.pipeline, {HOST_TAG: "elsewhere"})
    assert EarlierRuns(searched).step_seconds("trial", searched.training_run()) is None


def test_an_experiment_without_runs_has_no_earlier_ones(searched, tracking):
    earlier = EarlierRuns(searched)
    assert earlier.step_seconds("fit", searched.fit_run()) is None
    assert earlier.stage_seconds("search") is None
