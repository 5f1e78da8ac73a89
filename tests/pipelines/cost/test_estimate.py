"""The estimate of a sweep's cost: a simulated schedule, and times of earlier runs."""

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.cluster.capacity import Node
from pipelines.compat.ray import NICENESS
from pipelines.cost import estimate as estimates
from pipelines.cost import fits, simulation, times, timing
from pipelines.cost.earlier import EarlierRuns
from pipelines.cost.estimate import estimate
from pipelines.cost.simulation import draw_trials, simulate, step_flops
from pipelines.cost.timing import time_steps, without_interrupts
from pipelines.engine import instances
from pipelines.engine.cache import PlannedStage
from pipelines.engine.stage import Stage
from pipelines.experiment import Experiment, read_experiment
from pipelines.search.results import Selected
from pipelines.stages.study import fan_out
from pipelines.tracking.schema import HOST_TAG, STATE_TAG, TRIAL_TAG, VALUES_TAG
from pipelines.tracking.store import Store
from pipelines.tracking.trials import STATUS_OF_STATE, StoredTrial
from pipelines.tracking.writer import Writer
from pipelines.training.memory import peak_bytes
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


def test_a_drawn_trial_has_its_optimizer_whose_updates_cost(searched):
    space = {"train.optimizer": {"choice": ["adamw", "muon"]}, **SPACE}
    found = draw_trials(searched.replace({"search.space": space}).search_task(), [], seed=0)
    flops = {run.train.optimizer: step_flops(run) for run in found}
    assert flops["adamw"] < flops["muon"]


@pytest.mark.extended
@pytest.mark.process
def test_steps_are_timed_in_processes_of_their_own(experiment):
    two = experiment.training_run({"resources.workers": 2})
    small, large = time_steps([two, two.replace({"model.dim": 64, "model.depth": 8})], processes=1)
    assert 0 < small < large


@pytest.mark.process
def test_a_process_that_times_steps_leaves_ctrl_c_to_the_command():
    itself = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('goes on')"
    with without_interrupts():
        found = subprocess.run([sys.executable, "-c", itself], capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("goes on\n", "")
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("trials", "ways"), [(8, 20), (5000, 2), (10_000, 1)])
def test_of_a_long_search_fewer_ways_are_simulated(searched, trials, ways):
    long = searched.replace({"search.trials": trials})
    assert estimates._Costs(long, None, 0, print).ways == ways


def test_of_a_slow_size_four_steps_are_timed(experiment, tmp_path, monkeypatch):
    """A plan is waited for: two to warm up, two that count."""
    trained = []

    def train(run, *_):
        for row in (1, 2, 3):
            trained.append(run.train.log_every_steps)
            assert run.train.steps == run.train.log_every_steps * run.train.evals
            yield [{"time": 10.0 * row, "tokens_per_second": 256.0}]

    monkeypatch.setattr(timing.loop, "train", train)
    text = tmp_path / "text"
    assert timing._time(experiment.training_run(), text, tmp_path, seconds=2.0) == 1.0
    assert sum(trained) == 4


def test_a_process_has_the_niceness_and_the_gpus_of_a_worker(experiment, monkeypatch):
    run = experiment.training_run({"resources.gpus_per_worker": 0.5})
    added = []
    monkeypatch.setattr(timing.os, "nice", lambda more: added.append(more) or 10)
    monkeypatch.setattr(timing, "_time", lambda *_: 1.0)
    monkeypatch.setenv(NICENESS, "15")

    def visible(run, number: int, chosen: str | None = None) -> str:
        monkeypatch.delenv(timing.VISIBLE_GPUS, raising=False)
        if chosen is not None:
            monkeypatch.setenv(timing.VISIBLE_GPUS, chosen)
        timing._time_all([run], Path("text"), number)
        return os.environ[timing.VISIBLE_GPUS]

    assert [visible(run, number) for number in range(4)] == ["0", "0", "1", "1"]
    assert added == 4 * [0, 5]
    two = run.replace({"resources.gpus_per_worker": 2})
    assert visible(two, 1) == "2,3"
    assert visible(two, 1, "7,GPU-8,GPU-9,4") == "GPU-9,4"
    assert visible(experiment.training_run(), 1, "3") == ""


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


@contextmanager
def discard(text: str) -> Iterator[None]:
    """Shows nothing while something is waited for."""
    yield


def names(lines) -> list[str]:
    """The first words of the lines below the table's header."""
    return [line.split()[0] for line in lines if line.strip()][1:]


def test_without_earlier_runs_steps_are_timed(searched, planned, tracking, timed, cluster):
    lines = estimate(searched, SIZES, planned, cluster, discard)
    assert timed == [1, 1]
    assert names(lines) == ["trial", "fit", "search", "fit", "all"]


def test_the_largest_seed_can_be_estimated(searched, planned, tracking, timed, cluster):
    largest = searched.replace({"seed": 2**31 - 1})
    assert estimate(largest, SIZES, planned[:1], cluster, discard)


def test_rows_of_the_table_are_named_by_what_differs(searched, planned, tracking, timed, cluster):
    space = {"model.depth": {"int": [2, 4]}}
    deep = searched.replace({"search.space": space, "search.trials": 6})
    lines = estimate(deep, SIZES, planned[:1], cluster, discard)
    assert timed == [3]
    assert [line.split("  ")[0] for line in lines[1:4]] == [f"trial depth {n}" for n in (2, 3, 4)]
    assert " 500 ms " in lines[1]


def test_of_many_sizes_the_flops_of_a_few_are_counted(searched, planned, tracking, timed, cluster):
    space = {"model.dim": {"choice": [8 * heads for heads in range(2, 60)]}}
    one = {"model.heads": 1, "model.depth": 1}
    wide = searched.replace({"search.space": space, "search.trials": 20, **one})
    step_flops.cache_clear()
    texts: list[str] = []

    @contextmanager
    def shown(text: str) -> Iterator[None]:
        texts.append(text)
        yield

    estimate(wide, SIZES, planned[:1], cluster, shown)
    assert step_flops.cache_info().currsize == estimates.MAX_COUNTED
    wanted = ["reading", "reading", "simulating", "counting", "timing", "simulating"]
    assert [text.split()[0] for text in texts] == wanted


def test_real_numbers_make_no_sizes(searched):
    numbers = {"model.dropout": {"uniform": [0.0, 0.5]}, "model.dca.init_std": {"uniform": [0, 1]}}
    sizes = {"model.depth": {"int": [1, 2]}}
    found = searched.replace({"search.space": numbers | sizes, "search.trials": 40}).search_task()
    drawn = draw_trials(found, [], seed=0)
    assert (len(drawn), {run.model.depth for run in drawn}, len(set(drawn))) == (40, {1, 2}, 2)


def test_trials_in_few_sizes_keep_the_smallest_the_largest_and_their_order(searched, monkeypatch):
    runs = {dim: searched.training_run({"model.dim": dim}) for dim in range(8, 88, 8)}
    searches = [list(runs.values()), [runs[80], runs[8], runs[80]], []]
    every, ends, none = simulation.in_few_sizes(searches, 3)
    dims = [run.model.dim for run in every]
    assert dims == sorted(dims)
    assert len(set(dims)) == 3
    assert (dims[0], dims[-1]) == (8, 80)
    assert (ends, none) == (searches[1], [])
    assert simulation.in_few_sizes(searches, 10) == searches
    monkeypatch.setattr(simulation, "MAX_ORDERED", 5)
    every, *_ = simulation.in_few_sizes(searches, 10)
    assert [run.model.dim for run in every] == [8, 8, 24, 24, 40, 40, 56, 56, 72, 72]


def test_stages_that_read_the_test_split_take_longer_for_a_longer_one(
    searched, planned, tracking, timed, cluster, monkeypatch
):
    monkeypatch.setattr(estimates, "format_duration", lambda seconds: f"{seconds:.1f}")
    totals = []
    longer = 3 * 256 * 100
    for size in (0, longer):
        lines = estimate(searched, SIZES | {"test": size}, planned, cluster, discard)
        totals.append(float(lines[-1].split()[2]))
    others = longer * estimates.TEXT_SECONDS_PER_BYTE  # compressors, the training text
    assert totals[1] - totals[0] == pytest.approx(0.5 * 100 + others, abs=0.1)


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


def test_earlier_runs_are_read_once_while_that_is_shown(
    searched, planned, store, timed, cluster, monkeypatch
):
    """They were read anew for each simulated search, without a sign."""
    Stored(store, searched)
    read, shown = [], []

    @contextmanager
    def waiting(text: str) -> Iterator[None]:
        shown.append(text)
        yield
        shown.remove(text)

    def children(self, parent: str, kind: str) -> list:
        assert shown
        read.append((parent, kind))
        return found(self, parent, kind)

    found = Store.children
    monkeypatch.setattr(Store, "children", children)
    estimate(searched, SIZES, planned, cluster, waiting)
    assert len(read) == len(set(read)) > 0


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


def test_a_run_takes_its_start_its_steps_and_its_evaluations(experiment):
    run = experiment.training_run()  # 16 steps of 256 bytes, 4 evaluations of 512 bytes
    trial = estimates.Times("trial", 1000, {run: 3.0})
    assert trial.of_reading(run, 512) == pytest.approx(3.0 * 512 / (3 * 256))
    assert trial.of_run(run) == pytest.approx(0.4 + 16 * 3.0 + 4 * 2.0)
    assert estimates.Times("fit", 1000, {run: 3.0}).of_run(run) == pytest.approx(1.5 + 48 + 8)
    small = estimates.Times("trial", 256, {run: 3.0})  # evaluations read no more than there is
    assert small.of_run(run) == pytest.approx(0.4 + 48 + 4 * 1.0)
    whole = run.replace({"train.eval_tokens": None})
    assert estimates.Times("trial", 768, {whole: 3.0}).of_run(whole) == pytest.approx(48.4 + 4 * 3)


def test_only_a_fit_starts_several_workers_anew(experiment):
    one, two = (experiment.training_run({"resources.workers": number}) for number in (1, 2))
    for kind, seconds in (("trial", 0.0), ("fit", 15.7)):
        times = estimates.Times(kind, 1000, {one: 1.0, two: 1.0})
        assert times.of_run(two) - times.of_run(one) == pytest.approx(seconds)


def test_a_row_has_the_size_the_work_the_memory_and_the_time_of_a_run(experiment):
    run = experiment.training_run()
    (row,) = estimates.Times("fit", 1000, {run: 3.0}).rows()
    memory = f"{peak_bytes(run, on_gpu=False) / (1 << 20):,.0f} MiB"
    work = f"{16 * 3 * 256 * run.model.flops_per_token(32):.2e}"
    assert row == ("fit ", f"{run.model.parameter_count():,}", work, memory, "3,000 ms", "0:58")


def test_without_earlier_runs_each_stage_has_a_time_of_its_own(
    searched, tracking, timed, cluster, monkeypatch
):
    """On two cores: a change of these figures is a change of the estimate."""
    monkeypatch.setattr(estimates, "format_duration", lambda seconds: f"{seconds:.1f}")
    monkeypatch.setattr(estimates, "time_steps", lambda runs, processes: [0.0 for _ in runs])
    seconds = {"search": 10.6 + 3 * 0.4, "select": 0.1, "fit": 1.5, "corpus": 2.0, "sample": 5.0}
    seconds |= {"evaluate": 6.0, "register": 3.0, "promote": 3.2, "report": 1.2}
    for name, expected in seconds.items():
        needed = [name] if name in ("search", "fit") else ["fit", name]
        total = 4.0 + expected + (1.5 if len(needed) > 1 else 0)  # 4 s of the command itself
        stages = [
            PlannedStage(instances.Node(Stage(n, Selected, run=lambda *_: None))) for n in needed
        ]
        lines = estimate(searched, SIZES, stages, cluster, discard)
        (last,) = [line for line in lines if line.startswith("all ")]
        assert last.split()[2] == f"{total:.1f}", name


def test_half_of_the_searches_are_below_the_middle_and_most_within_the_range():
    seconds = [60.0 * number for number in range(11)]
    assert estimates._range(seconds) == "about 5:00 (1:00 to 9:00)"


def test_a_fit_that_differs_from_a_trial_in_its_budget_alone_is_not_timed_again(
    searched, planned, tracking, timed
):
    estimate(searched, SIZES, planned, [Node("here", 1)], discard)
    assert timed == [1]


def test_a_larger_test_split_takes_longer_to_evaluate(searched, planned, tracking, timed, cluster):
    found = []
    for test in (2_000, 90_000_000):
        lines = estimate(searched, SIZES | {"test": test}, planned, cluster, discard)
        minutes = next(line for line in lines if line.startswith("all ")).split()[2]
        found.append(int(minutes.split(":")[0]))
    assert found[1] > found[0] + 10


def test_three_sizes_are_timed_the_smallest_and_the_largest_among_them(
    searched, tracking, monkeypatch
):
    asked = []

    def time_some(runs, *, processes):
        asked.append(([run.model.depth for run in runs], processes))
        return [1.0 for _ in runs]

    monkeypatch.setattr(estimates, "time_steps", time_some)
    monkeypatch.setattr(estimates, "machine_cpus", lambda: 8)
    costs = estimates._Costs(searched, EarlierRuns(searched), 1000, discard)
    depths = [3, 9, 5, 1, 7]
    costs.times("trial", {"": [searched.training_run({"model.depth": n}) for n in depths]}, 3)
    two = {"resources.workers": 2, "resources.cpus_per_worker": 3}
    costs.times("fit", {"": [searched.training_run(two)]}, 5)
    monkeypatch.setattr(estimates, "machine_cpus", lambda: 1)
    costs.times("fit", {"": [searched.training_run(two)]}, 5)
    assert asked == [([1, 5, 9], 3), ([2], 2), ([2], 1)]
    assert costs.timed
    assert [row[0] for row in costs.table[:3]] == [
        "trial depth 1",
        "trial depth 5",
        "trial depth 9",
    ]


def test_failed_trials_are_left_of_a_search_that_tries_them_again(searched, store, cluster, timed):
    stored = Stored(store, searched)
    run = store.client.get_run(stored.search)
    for failed in store.children(stored.search, "trial"):
        store.tag(failed.info.run_id, {STATE_TAG: "failed"})
    for again, trials in ((False, 4), (True, 6)):
        costs = estimates._Costs(searched, EarlierRuns(searched), 1000, discard, again)
        (found,) = costs.searches(cluster, {"": run}).values()
        assert len(found) == 20
        assert {one.trials for one in found} == {trials}


def test_a_simulated_search_sums_up_its_work_and_ends_with_a_complete_winner(searched):
    found = run(searched)
    assert found.flops == pytest.approx(6 * 16 * step_flops(searched.training_run()))
    assert found.trials == 6
    asha = searched.replace({"search.scheduler.name": "asha", "search.trials": 30})
    stopped = run(asha, concurrent=1)
    assert stopped.flops == pytest.approx(stopped.seconds * step_flops(searched.training_run()))


def test_the_best_of_the_complete_trials_wins_a_simulated_search(searched, monkeypatch):
    task = searched.search_task()
    runs = [searched.training_run({"train.learning_rate": 1e-3 + n / 1e4}) for n in range(5)]
    qualities = iter([0.5, 0.2, 0.9, 0.1, 0.3])
    monkeypatch.setattr(
        simulation.random, "Random", lambda seed: SimpleNamespace(random=lambda: next(qualities))
    )
    assert simulate(task, [], runs, lambda run: 1.0, 2).winner == runs[3]


@pytest.mark.parametrize(("factor", "goes_on"), [(2, (0.3, 0.45)), (3, (0.3,))])
def test_one_of_factor_trials_goes_beyond_a_rung(factor, goes_on):
    for quality in (0.3, 0.45, 0.55):  # the second, third and fourth of six
        rungs = {10: [], 20: []}
        found = [simulation._stop_tokens(rungs, factor, q) for q in (0.5, 0.4, 0.6, 0.1, 0.7)]
        assert [one == 10 for one in found] == [False, False, True, False, True]
        assert (simulation._stop_tokens(rungs, factor, quality) == 10) == (quality not in goes_on)


def test_the_newest_five_pipelines_count_and_no_experiment_is_made(searched, store):
    none = searched.replace({"experiment": "other"})
    assert EarlierRuns(none).stage_seconds("fit") is None
    assert store.client.get_experiment_by_name("other") is None
    data, ids = searched.model_dump(mode="json"), []
    for number in range(7):
        ids.append(store.create("pipeline", f"key {number}", "pipeline", params=data))
        store.tag(ids[-1], {HOST_TAG: platform.node()})
    found = [run.info.run_id for run in EarlierRuns(searched)._pipelines]
    assert found == ids[:1:-1]


ARMS = {
    "standard": {"model.residual": "standard"},
    "deep": {"model.depth": 4},
    "wide": {"model.dim": 32, "search.space.train.learning_rate": {"choice": [1e-3, 2e-3, 4e-3]}},
}


def planned_study(experiment: Experiment, reused: tuple[str, ...] = ()) -> list[PlannedStage]:
    """The stages of a study up to its evaluations, with some of them reused."""
    names = {"search": ("arm",), "select": ("arm",), "fit": ("arm", "seed")}
    names |= {"probe": (), "evaluate": ("arm", "seed")}
    stages = [Stage(name, Selected, run=lambda *_: None, over=over) for name, over in names.items()]
    planned = [PlannedStage(node) for node in instances.expand(stages, fan_out(experiment), None)]
    for one in planned:
        if str(one.node) in reused:
            one.result = Selected(0, "a", {"train.learning_rate": 1e-3}, 2.0)
    return planned


@pytest.fixture
def study(data) -> Experiment:
    search = {"space": {"train.learning_rate": {"choice": [1e-3, 2e-3]}}}
    search |= {"sampler": {"name": "grid"}, "scheduler": {"name": "none"}}
    return read_experiment({**data, "search": search, "arms": ARMS, "seeds": 2}, source="test")


def steps_of_a_second(monkeypatch) -> list[list[str]]:
    """A step takes a second, nothing else takes time; returns the timed sizes, at each time."""
    asked: list[list[str]] = []

    def time_some(runs, *, processes):
        asked.append([f"{run.model.residual} {run.model.depth} {run.model.dim}" for run in runs])
        return [1.0 for _ in runs]

    monkeypatch.setattr(estimates, "time_steps", time_some)
    monkeypatch.setattr(estimates, "format_duration", lambda seconds: f"{seconds:.1f}")
    monkeypatch.setattr(times.Times, "of_reading", lambda *_: 0.0)
    monkeypatch.setattr(fits, "PROBE_SECONDS", 0.0)
    monkeypatch.setattr(fits, "PROBE_ROUNDS", 0)
    monkeypatch.setattr(estimates, "TEXT_SECONDS_PER_BYTE", 0.0)
    for name in times.DEFAULT_SECONDS:
        monkeypatch.setitem(times.DEFAULT_SECONDS, name, 0.0)
    return asked


def test_a_study_costs_its_arms_trials_and_replicates_on_all_slots(
    study, tracking, cluster, monkeypatch
):
    asked = steps_of_a_second(monkeypatch)
    lines = estimate(study, SIZES, planned_study(study), cluster, discard)
    table, notes = lines[: lines.index("")], lines[lines.index("") + 1 :]
    kinds = [f"{name} {kind}" for kind in ("trial", "fit") for name in ARMS]
    assert [" ".join(row.split()[:2]) for row in table[1:]] == kinds
    assert asked == [["standard 2 16", "dca 4 16", "dca 2 32"]]  # a fit's steps are a trial's
    assert notes[0] == "search about 64.0 (64.0 to 64.0), 7 trials of 28,672 bytes together"
    assert notes[1] == "fit    about 48.0 (48.0 to 48.0), 6 trainings of 24,576 bytes together"
    assert notes[2].startswith("all    about 112.0 (112.0 to 112.0), ")
    flops = sum(  # of the trials and the fits
        (4 if name != "wide" else 5) * 16 * step_flops(arm.training_run())
        for name, arm in study.by_arm.items()
    )
    assert notes[2].endswith(f", {flops:.2e} FLOPs")


def test_what_is_reused_of_a_study_costs_nothing(study, tracking, cluster, monkeypatch):
    steps_of_a_second(monkeypatch)
    reused = [f"{stage}[{name}]" for name in ARMS for stage in ("search", "select")]
    reused += ["fit[standard, 0]", "fit[standard, 1]", "fit[deep, 0]"]
    lines = estimate(study, SIZES, planned_study(study, tuple(reused)), cluster, discard)
    notes = lines[lines.index("") + 1 :]
    assert notes[0] == "fit    about 32.0 (32.0 to 32.0), 3 trainings of 12,288 bytes together"
    assert notes[1].startswith("all    about 32.0 (32.0 to 32.0), ")


def test_with_equal_time_every_fit_takes_the_baselines(study, tracking, monkeypatch):
    steps_of_a_second(monkeypatch)
    deep = study.of_arm("deep").fit_run()
    monkeypatch.setattr(times.Times, "of_step", lambda _, run: 3.0 if run.model.depth == 4 else 1.0)
    for changes, seconds in (({}, 10 * 16.0), ({"budget": "time"}, 6 * 16.0)):
        one = study.replace(changes) if changes else study
        reused = tuple(f"{stage}[{name}]" for name in ARMS for stage in ("search", "select"))
        planned = planned_study(one, reused)
        lines = estimate(one, SIZES, planned, [Node("here", 1)], discard)
        note = lines[lines.index("") + 1]
        assert note.startswith(f"fit    about {seconds:.1f} (")
        assert note.endswith(" trainings" if changes else " bytes together")
    others = sum(2 * 16 * step_flops(one.of_arm(name).fit_run()) for name in ("standard", "wide"))
    wanted = others + 2 * 16 * step_flops(deep) / 3
    assert lines[-1].endswith(f", {wanted:.2e} FLOPs")


def test_seeds_without_arms_cost_as_many_fits(searched, tracking, cluster, monkeypatch):
    steps_of_a_second(monkeypatch)
    seeds = searched.replace({"seeds": 3})
    lines = estimate(seeds, SIZES, planned_study(seeds), cluster, discard)
    notes = lines[lines.index("") + 1 :]
    assert notes[0] == "search about 48.0 (48.0 to 48.0)"
    assert notes[1] == "fit    about 32.0 (32.0 to 32.0), 3 trainings of 12,288 bytes together"


@pytest.mark.extended
def test_the_probe_takes_turns_with_each_arm_and_every_model_is_evaluated(
    study, tracking, cluster, monkeypatch
):
    def seconds(**changes) -> float:
        steps_of_a_second(monkeypatch)
        for name, value in changes.items():
            monkeypatch.setattr(fits, name, value)
        lines = estimate(study, SIZES, planned_study(study), cluster, discard)
        return float(lines[-1].split()[2])

    nothing = seconds()
    assert seconds(PROBE_SECONDS=5.0) == nothing + 2 * 5
    assert seconds(PROBE_ROUNDS=4, SECONDS=2.0) == nothing + 2 * 2 * 4 * (2 + 3 * 1.0)
    monkeypatch.setitem(times.DEFAULT_SECONDS, "evaluate", 1.0)
    lines = estimate(study, SIZES, planned_study(study), cluster, discard)
    assert float(lines[-1].split()[2]) > nothing + 6


def test_the_trials_of_arms_take_turns(study, tracking, monkeypatch):
    monkeypatch.setitem(times.DEFAULT_SECONDS, "search", 7.0)
    costs = estimates._Costs(study, EarlierRuns(study), 1000, discard)
    winner = study.training_run()
    three, one = (simulation.SimulatedSearch(winner, durations=d) for d in ([1.0] * 3, [3.0]))
    found = costs.search_seconds([Node("here", 2)], {"a": [three, three], "b": [one, one]})
    assert list(found) == [7 + 3, 7 + 3]  # 4 if the long one came last
    ended = simulation.SimulatedSearch(winner)
    assert list(costs.search_seconds([Node("here", 2)], {"a": [ended]})) == [0]


def test_each_of_many_arms_has_one_timed_size_if_it_has_a_trial_left(searched):
    runs = [searched.training_run({"model.depth": depth}) for depth in (1, 4, 2)]
    assert [run.model.depth for run in estimates._some_sizes(runs, 1)] == [2]
    assert [run.model.depth for run in estimates._some_sizes(runs, 2)] == [1, 4]
    assert estimates._some_sizes([], 1) == estimates._some_sizes([], 3) == []


def test_jobs_take_the_next_free_slot():
    assert simulation.makespan([3, 1, 1, 1], 2) == 3
    assert simulation.makespan([1, 1, 1, 3], 2) == 4
    assert simulation.makespan([], 2) == 0
