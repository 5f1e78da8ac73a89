"""The schedule of a search played through, with prices that are known."""

import pytest

from pipelines.cost.prices import CostModel, step_flops
from pipelines.cost.simulation import TRIAL_SECONDS, simulate
from pipelines.cost.timing import StepTiming
from pipelines.experiment import Experiment, read_experiment
from pipelines.search.resume import StoredTrial

SPACE = {"train.learning_rate": {"log_uniform": [1e-4, 1e-2]}}


class Second(CostModel):
    """A second a step; evaluations cost nothing."""

    def __init__(self) -> None:
        self.sizes, self.flops, self.measured = [], [0.0], [StepTiming(1.0, 0.0, 0)]


@pytest.fixture
def searched(data) -> Experiment:
    """Six trials of 16 steps, with an evaluation every 4."""
    none = {"name": "none"}
    data["search"] = {"space": SPACE, "trials": 6, "scheduler": none}
    return read_experiment(data, source="test")


def seconds(config: Experiment, stored=(), at_once: int = 2, seed: int = 0) -> float:
    return simulate(config, stored, Second(), at_once, seed).seconds


def test_without_stopping_every_trial_takes_its_time(searched):
    assert seconds(searched) == pytest.approx(3 * 16 + 2 * TRIAL_SECONDS)
    assert seconds(searched, at_once=1) == pytest.approx(6 * 16 + 5 * TRIAL_SECONDS)


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_stopping_saves_time_in_every_order(searched, scheduler):
    config = searched.replace({"search.scheduler.name": scheduler, "search.trials": 16})
    full = seconds(searched.replace({"search.trials": 16}))
    found = {seconds(config, seed=seed) for seed in range(8)}
    assert max(found) < full
    assert min(found) > 4 * 16 / 2
    assert len(found) > 1


def test_the_same_seed_plays_the_same_search(searched):
    asha = searched.replace({"search.scheduler.name": "asha"})
    assert seconds(asha, seed=3) == seconds(asha, seed=3)


def test_a_search_that_was_begun_costs_the_remainder(searched):
    values, batch = {"train.learning_rate": 1e-3}, 256
    curve = {step * batch: 2.0 for step in (4, 8, 12, 16)}
    stored = [
        StoredTrial(0, "a", values, "complete", 2.0, tokens=16 * batch, curve=curve),
        StoredTrial(1, "b", values, tokens=12 * batch),
    ]
    outcome = simulate(searched, stored, Second(), 1, 0)
    assert outcome.trials == 5
    assert outcome.seconds == pytest.approx(4 + 4 * 16 + 4 * TRIAL_SECONDS)


def test_no_trial_starts_beyond_a_budget(searched):
    assert simulate(searched.replace({"search.max_tokens": 1}), [], Second(), 1, 0).trials == 1
    by_clock = searched.replace({"search.max_seconds": 17})
    assert simulate(by_clock, [], Second(), 1, 0).trials == 2
    assert simulate(by_clock, [], Second(), 1, 0, before=10).trials == 1


def test_larger_trials_take_longer_between_the_measured_sizes(config):
    deep = config.replace({"model.depth": 4})
    between = config.replace({"model.depth": 3})
    prices = Second()
    prices.flops = [step_flops(config), step_flops(deep)]
    prices.measured = [StepTiming(1.0, 0.1, 0), StepTiming(2.0, 0.2, 0)]
    assert 1.0 < prices.step_seconds(between) < 2.0
    assert prices.run_seconds(deep) == pytest.approx(2.0 * 16 + 0.2 * 4)
