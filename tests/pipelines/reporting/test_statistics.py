import math

import pytest
from scipy import stats

from pipelines.experiment import read_experiment
from pipelines.reporting.loading import load_results
from pipelines.reporting.statistics import (
    at_equal_tokens,
    compare_top_two,
    pruning_savings,
    ranking,
    seed_statistics,
)
from pipelines.reporting.summary import repeated_configurations, summary
from tests.pipelines.reporting import tables
from tests.pipelines.stored import Made, store_sweep, store_training


def trial(rate: float, bits: list[float], state: str = "complete", **more) -> Made:
    values = {"train.learning_rate": rate, "model.residual": "standard"} | more
    return Made(values, bits, state)


def test_trials_are_compared_at_the_largest_budget_that_all_of_them_reached(searched, made):
    results = made(
        searched,
        [
            trial(1e-3, [4.0, 3.0, 2.0, 1.0]),
            trial(1e-2, [3.5, 3.6], "pruned"),
            Made(
                {"train.learning_rate": 0.1, "model.residual": "standard"}, [9.0], "failed", "bad"
            ),
        ],
    )
    tokens, values = at_equal_tokens(results)
    assert tokens == searched.train.eval_steps[1] * searched.train.batch_tokens
    assert values.to_dict() == {0: 3.0, 1: 3.5}


def test_a_pruned_trial_never_outranks_a_complete_one_and_the_failed_come_last(searched, made):
    results = made(
        searched,
        [
            trial(1e-3, [4.0], "failed"),
            trial(1e-3, [3.0, 1.0], "pruned"),
            trial(2e-3, [4.0, 3.0, 2.5, 2.4]),
            trial(3e-3, [4.0, 3.0, 2.5, 2.2]),
        ],
    )
    assert list(ranking(results).index) == [3, 2, 1, 0]
    assert math.isnan(ranking(results).loc[0, "bits_per_byte"])


def test_pruning_saves_the_rest_of_the_budget_at_the_trials_own_pace(searched, made):
    results = made(searched, [trial(1e-3, [3, 2, 1, 1]), trial(1e-3, [3, 3], "pruned")])
    savings, train = pruning_savings(results), searched.train
    left = train.steps - train.eval_steps[1]
    assert (savings.trials, savings.tokens) == (1, left * train.batch_tokens)
    assert savings.seconds == pytest.approx(0.5 * left)
    spent = (train.steps + train.eval_steps[1]) * train.batch_tokens
    assert savings.share == pytest.approx(savings.tokens / (savings.tokens + spent))


def test_runs_that_differ_only_in_the_seed_have_an_interval(store, searched):
    winner = {"train.learning_rate": 1e-3, "model.residual": "standard"}
    trials = [Made(winner, [3, 2.5, 2.1, 2.0]), trial(2e-3, [3, 2.5, 2.3, 2.2])]
    store_sweep(store, searched, trials, winner=0)
    for seed, bits in ((1, 2.04), (2, 2.08), (2, 9.0)):  # a repeated seed does not count
        store_training(store, searched.training_run(winner | {"seed": seed}), bits)
    store_training(store, searched.training_run(winner | {"seed": 3, "train.tokens": 8192}), 1.0)
    table = seed_statistics(load_results("tiny"))
    (row,) = [row for _, row in table[table["n"] > 1].iterrows()]
    assert (row["n"], row["mean"]) == (3, pytest.approx(2.04))
    half = stats.t.ppf(0.975, 2) * 0.04 / math.sqrt(3)
    assert (row["low"], row["high"]) == (pytest.approx(2.04 - half), pytest.approx(2.04 + half))
    assert ranking(load_results("tiny")).loc[0, "n"] == 3
    assert len(repeated_configurations(load_results("tiny"))) == 1


def test_the_winner_is_better_only_with_an_interval_over_seeds(store, searched):
    values = [{"train.learning_rate": rate, "model.residual": "standard"} for rate in (1e-3, 1e-2)]
    trials = [Made(values[0], [3, 2.5, 2.1, 2.0]), Made(values[1], [3, 2.6, 2.3, 2.2])]
    store_sweep(store, searched, trials, winner=0)
    pair = compare_top_two(load_results("tiny"))
    assert (pair.winner, pair.second, pair.means) == (0, 1, None)
    assert pair.gap == pytest.approx(0.2)
    assert "with one seed each, too few to exclude chance" in summary(load_results("tiny"))[1]
    for seed in (1, 2):
        for one, bits in zip(values, (2.0, 2.2), strict=True):
            store_training(store, searched.training_run(one | {"seed": seed}), bits + 0.01 * seed)
    pair = compare_top_two(load_results("tiny"))
    assert pair.counts == (2, 2)  # without seed 0, with which the search has chosen them
    assert pair.means == (pytest.approx(2.015), pytest.approx(2.215))
    assert 0 < pair.low < 0.2 < pair.high
    assert "so that it is better" in summary(load_results("tiny"))[1]


def test_seeds_that_are_trained_as_the_fit_are_found_whatever_it_changes(store, searched):
    fit = {"tokens": 8192, "evals": 16, "eval_tokens": "all", "compile": True}
    config = searched.replace({"fit": fit})
    values = [{"train.learning_rate": rate, "model.residual": "standard"} for rate in (1e-3, 1e-2)]
    trials = [Made(values[0], [3, 2.5, 2.1, 2.0]), Made(values[1], [3, 2.6, 2.3, 2.2])]
    store_sweep(store, config, trials, winner=0)
    for seed in (1, 2):
        for one, bits in zip(values, (1.9, 2.1), strict=True):
            store_training(store, config.fit_run(one | {"seed": seed}), bits + 0.01 * seed)
    pair = compare_top_two(load_results("tiny"))
    assert pair.counts == (2, 2)
    assert pair.means == (pytest.approx(1.915), pytest.approx(2.115))


def test_a_runner_up_that_the_fit_cannot_train_is_compared_as_a_trial(data):
    space = {"train.batch_tokens": {"int": [64, 256], "step": 32}}
    more = {"search": {"space": space}, "fit": {"resources": {"workers": 2}}}
    config = read_experiment(data | more, source="test")
    trials = [
        tables.trial("complete", [bits], name, train__batch_tokens=tokens)
        for name, bits, tokens in (("a", 2.0, 128), ("b", 2.5, 96))
    ]
    completed = [(name, seed, 2.0 + 0.1 * seed) for name in "ab" for seed in (1, 2)]
    results = tables.results_of(config, trials, winner=0, completed=completed)
    assert compare_top_two(results).counts == (2, 2)


@pytest.mark.parametrize(
    ("bits", "gap", "words"),
    [
        ([3.2, 2.9], 0.4, "0.4000 better than trial 1, the next, after"),
        ([3.2, 2.4], -0.1, "0.1000 worse than trial 1, the next, after"),
    ],
)
def test_a_runner_up_that_was_stopped_early_is_compared_where_it_was_stopped(
    bits, gap, words, searched, made
):
    results = made(
        searched,
        [
            trial(1e-3, [3.0, 2.5, 2.1, 2.0]),
            trial(1e-2, bits, "pruned"),
            trial(1e-1, [2.9], "pruned"),  # ahead of both, but stopped first
        ],
        winner=0,
    )
    pair = compare_top_two(results)
    assert pair.tokens == searched.train.eval_steps[1] * searched.train.batch_tokens
    assert (pair.second, pair.gap) == (1, pytest.approx(gap))
    assert words in summary(results)[1]
