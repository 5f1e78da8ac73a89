import math

import pytest
from scipy import stats

from pipelines.console.errors import ConfigError
from pipelines.reporting.findings import findings
from pipelines.reporting.judgement import comparable, duel, importance, over_seeds, ranking, saved
from pipelines.reporting.words import repeated, summary
from tests.pipelines.stored import Made, store_sweep, store_training


def trial(rate: float, bits: list[float], state: str = "complete", **more) -> Made:
    values = {"train.learning_rate": rate, "model.residual": "standard"} | more
    return Made(values, bits, state)


def test_trials_are_compared_at_the_most_bytes_that_all_of_them_reached(searched, made):
    found = made(
        searched,
        [
            trial(1e-3, [4.0, 3.0, 2.0, 1.0]),
            trial(1e-2, [3.5, 3.6], "pruned"),
            Made(
                {"train.learning_rate": 0.1, "model.residual": "standard"}, [9.0], "failed", "bad"
            ),
        ],
    )
    tokens, values = comparable(found)
    assert tokens == searched.train.eval_steps[1] * searched.train.batch_tokens
    assert values.to_dict() == {0: 3.0, 1: 3.5}


def test_a_pruned_trial_never_outranks_a_complete_one_and_the_failed_come_last(searched, made):
    found = made(
        searched,
        [
            trial(1e-3, [4.0], "failed"),
            trial(1e-3, [3.0, 1.0], "pruned"),
            trial(2e-3, [4.0, 3.0, 2.5, 2.4]),
            trial(3e-3, [4.0, 3.0, 2.5, 2.2]),
        ],
    )
    assert list(ranking(found).index) == [3, 2, 1, 0]
    assert math.isnan(ranking(found).loc[0, "bits_per_byte"])


def test_a_key_that_alone_decides_is_the_most_important(searched, made):
    rates = [10 ** (-4 + 3 * i / 11) for i in range(12)]
    kinds = ["standard", "dca"] * 6
    trials = [
        Made(
            {"train.learning_rate": rate, "model.residual": kind}
            | ({"model.last_k": [1, 2, None][i % 3]} if kind == "dca" else {}),
            [3 + abs(math.log10(rate) + 2), 2 + abs(math.log10(rate) + 2)],
            "pruned",
        )
        for i, (rate, kind) in enumerate(zip(rates, kinds, strict=True))
    ]
    known = importance(made(searched, trials))
    shares = known.shares["share"]
    assert shares["train.learning_rate"] > 0.8
    assert shares["model.residual"] < 0.2
    assert known.shares.loc["model.last_k", "trials"] == 6
    assert not known.shares.loc["model.last_k", "always"]


@pytest.mark.parametrize(
    ("count", "bits", "note"),
    [(3, 0.1, "at least 4 are needed"), (6, 0.0, "all trials have the same result")],
)
def test_where_nothing_can_be_said_of_importance_it_says_why(searched, made, count, bits, note):
    trials = [trial(1e-3 * (i + 1), [3 + bits * i, 2 + bits * i]) for i in range(count)]
    found = made(searched, trials, winner=0)
    assert note in importance(found).note
    assert summary(found)[0].startswith("Which hyperparameter mattered most cannot be said")


def test_what_pruning_saved_is_the_rest_of_the_budget_at_the_trials_own_pace(searched, made):
    found = made(searched, [trial(1e-3, [3, 2, 1, 1]), trial(1e-3, [3, 3], "pruned")])
    less, train = saved(found), searched.train
    left = train.steps - train.eval_steps[1]
    assert (less.trials, less.tokens) == (1, left * train.batch_tokens)
    assert less.seconds == pytest.approx(0.5 * left)
    spent = (train.steps + train.eval_steps[1]) * train.batch_tokens
    assert less.share == pytest.approx(less.tokens / (less.tokens + spent))


def test_runs_that_differ_in_nothing_but_the_seed_have_an_interval(store, searched):
    winner = {"train.learning_rate": 1e-3, "model.residual": "standard"}
    trials = [Made(winner, [3, 2.5, 2.1, 2.0]), trial(2e-3, [3, 2.5, 2.3, 2.2])]
    store_sweep(store, searched, trials, winner=0)
    for seed, bits in ((1, 2.04), (2, 2.08), (2, 9.0)):  # a seed again is no second opinion
        store_training(store, searched.replace(winner | {"seed": seed}), bits)
    store_training(store, searched.replace(winner | {"seed": 3, "train.tokens": 8192}), 1.0)
    table = over_seeds(findings("tiny"))
    (row,) = [row for _, row in table[table["n"] > 1].iterrows()]
    assert (row["n"], row["mean"]) == (3, pytest.approx(2.04))
    half = stats.t.ppf(0.975, 2) * 0.04 / math.sqrt(3)
    assert (row["low"], row["high"]) == (pytest.approx(2.04 - half), pytest.approx(2.04 + half))
    assert ranking(findings("tiny")).loc[0, "n"] == 3
    assert len(repeated(findings("tiny"))) == 1


def test_the_win_is_as_sure_as_its_seeds(store, searched):
    values = [{"train.learning_rate": rate, "model.residual": "standard"} for rate in (1e-3, 1e-2)]
    trials = [Made(values[0], [3, 2.5, 2.1, 2.0]), Made(values[1], [3, 2.6, 2.3, 2.2])]
    store_sweep(store, searched, trials, winner=0)
    pair = duel(findings("tiny"))
    assert (pair.winner, pair.second, pair.means) == (0, 1, None)
    assert pair.gap == pytest.approx(0.2)
    assert "with one seed each, which does not tell" in summary(findings("tiny"))[1]
    for seed in (1, 2):
        for one, bits in zip(values, (2.0, 2.2), strict=True):
            store_training(store, searched.replace(one | {"seed": seed}), bits + 0.01 * seed)
    pair = duel(findings("tiny"))
    assert pair.counts == (3, 3)
    assert 0 < pair.low < 0.2 < pair.high
    assert "so that it is better" in summary(findings("tiny"))[1]


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
    found = made(
        searched,
        [
            trial(1e-3, [3.0, 2.5, 2.1, 2.0]),
            trial(1e-2, bits, "pruned"),
            trial(1e-1, [2.9], "pruned"),  # ahead of both, and no further
        ],
        winner=0,
    )
    pair = duel(found)
    assert pair.tokens == searched.train.eval_steps[1] * searched.train.batch_tokens
    assert (pair.second, pair.gap) == (1, pytest.approx(gap))
    assert words in summary(found)[1]


def test_an_experiment_that_is_not_there_is_named_with_the_nearest(store, searched, made):
    made(searched, [])
    with pytest.raises(ConfigError, match=r"tinny: no such experiment in .*did you mean tiny"):
        findings("tinny")
