"""The estimate of a sweep's cost: a simulated schedule, and times of earlier runs."""

import pytest

from pipelines.cluster.capacity import Node
from pipelines.cost import estimate as estimates
from pipelines.cost.earlier import EarlierRuns
from pipelines.cost.estimate import estimate
from pipelines.cost.simulation import draw_trials, simulate
from pipelines.cost.timing import interpolated, step_flops, time_steps
from pipelines.engine import dag
from pipelines.engine.stage import Stage
from pipelines.experiment import Experiment, read_experiment
from pipelines.search.resume import StoredTrial
from pipelines.tracking.schema import HOST_TAG
from pipelines.tracking.writer import Writer

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
    return simulate(task, stored, trials, lambda _: 1.0, concurrent, **options)


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
    curve = {step * batch: 2.0 for step in (4, 8, 12, 16)}
    stored = [
        StoredTrial(0, "a", values, "complete", 2.0, tokens=16 * batch, curve=curve),
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
    seconds = interpolated({deep: 2.0, small: 1.0})
    assert (seconds(small), seconds(deep)) == (1.0, 2.0)
    assert 1.0 < seconds(between) < 2.0
    assert step_flops(small) < step_flops(between) < step_flops(deep)


def test_steps_are_timed_in_processes_of_their_own(experiment):
    two = experiment.training_run({"resources.workers": 2})
    small, large = time_steps([two, two.replace({"model.dim": 64, "model.depth": 8})], processes=1)
    assert 0 < small < large


@pytest.fixture
def planned(searched) -> list[dag.PlannedStage]:
    """Nothing is cached."""
    names = ("search", "select", "fit", "evaluate")
    return [dag.PlannedStage(Stage(name, run=lambda *_: {})) for name in names]


def test_without_earlier_runs_steps_are_timed(searched, planned, tracking, monkeypatch, cluster):
    timed = []

    def time_some(runs, *, processes):
        timed.append(len(runs))
        return [0.5 for _ in runs]

    monkeypatch.setattr(estimates, "time_steps", time_some)
    lines = estimate(searched, SIZES, planned, cluster, lambda _: None)
    assert timed == [1, 1]
    assert [line.split()[0] for line in lines if line.strip()][1:] == [
        "trial",
        "fit",
        "search",
        "fit",
        "all",
    ]


@pytest.fixture
def cluster():
    return [Node("here", 2)]


class Stored:
    """A pipeline with a search of two trials, a fit and an evaluation."""

    def __init__(self, store, experiment: Experiment) -> None:
        self.store = store
        data = experiment.model_dump(mode="json")
        self.pipeline = store.create("pipeline", "key", "pipeline", params=data)
        search = store.create("search", "search", "search", parent=self.pipeline)
        writer = Writer(store)
        for number in range(2):
            self._train(writer, "trial", str(number), search, experiment.training_run())
        self._train(writer, "fit", "fit", self.pipeline, experiment.fit_run())
        writer.close()
        store.end(search)
        evaluate = store.create("evaluate", "evaluate", "evaluate", parent=self.pipeline)
        store.end(evaluate)

    def _train(self, writer: Writer, kind: str, key: str, parent: str, training) -> None:
        run = self.store.create(kind, key, key, parent=parent, params=training.params)
        row = {"step": 16, "time": 1.0, "tokens": training.train.tokens, "seconds": 1.0}
        writer.write(run, [{**row, "train_bits_per_byte": 2.0, "val_bits_per_byte": 2.0}])
        writer.finish(run, "FINISHED", {}, None)


def test_times_of_earlier_runs_are_taken_instead(searched, planned, store, monkeypatch, cluster):
    Stored(store, searched)
    monkeypatch.setattr(estimates, "time_steps", lambda *_, **__: pytest.fail("timed"))
    lines = estimate(searched, SIZES, planned, cluster, lambda _: None)
    assert lines[-1].startswith("all    about 0:0")
    earlier = EarlierRuns(searched)
    assert 0 < earlier.step_seconds("trial", searched.training_run()) < 1
    assert 0 <= earlier.stage_seconds("search") < 10
    assert 0 <= earlier.stage_seconds("evaluate") < 10
    assert earlier.stage_seconds("register") is None


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
