import math

import optuna
import pytest

from pipelines.experiment import read_experiment
from pipelines.reporting import importance as module
from pipelines.reporting.importance import importance
from pipelines.reporting.summary import summary
from tests.pipelines.reporting.tables import INACTIVE, results_of, trial
from tests.pipelines.stored import Made


def test_the_key_that_decides_the_result_is_the_most_important(searched, made):
    rates = [10 ** (-4 + 3 * i / 11) for i in range(12)]
    kinds = ["standard", "dca"] * 6
    trials = [
        Made(
            {"train.learning_rate": rate, "model.residual": kind}
            | ({"model.dca.last_k": [1, 2, None][i % 3]} if kind == "dca" else {}),
            [3 + abs(math.log10(rate) + 2), 2 + abs(math.log10(rate) + 2)],
            "pruned",
        )
        for i, (rate, kind) in enumerate(zip(rates, kinds, strict=True))
    ]
    known = importance(made(searched, trials))
    shares = known.shares["share"]
    assert shares["train.learning_rate"] > 0.8
    assert shares["model.residual"] < 0.2
    assert known.shares.loc["model.dca.last_k", "trials"] == 6
    assert not known.shares.loc["model.dca.last_k", "always"]


@pytest.mark.parametrize(
    ("count", "bits", "note"),
    [(3, 0.1, "at least 4 are needed"), (6, 0.0, "all trials have the same result")],
)
def test_without_an_importance_there_is_a_reason(searched, made, count, bits, note):
    values = {"model.residual": "standard"}
    trials = [
        Made(values | {"train.learning_rate": 1e-3 * (i + 1)}, [3 + bits * i, 2 + bits * i])
        for i in range(count)
    ]
    results = made(searched, trials, winner=0)
    assert note in importance(results).note
    assert summary(results)[0].startswith("The most important hyperparameter cannot be determined")


def test_importance_leaves_optunas_verbosity_as_it_was(searched, made):
    values = {"model.residual": "standard"}
    trials = [Made(values | {"train.learning_rate": 10.0**-i}, [i]) for i in (4, 3, 2, 1)]
    before = optuna.logging.get_verbosity()
    assert not importance(made(searched, trials)).note
    assert optuna.logging.get_verbosity() == before


def searched_trials(count: int, **columns) -> list[dict]:
    """Trials whose results are those of the first column."""
    first = next(iter(columns.values()))
    return [
        trial("complete", [float(first(n))], **{key: value(n) for key, value in columns.items()})
        for n in range(count)
    ]


@pytest.fixture
def three(data):
    space = {
        "train.weight_decay": {"uniform": [0.0, 10.0]},
        "model.depth": {"int": [1, 9]},
        "model.dca.last_k": {"int": [1, 9], "when": {"model.residual": "dca"}},
    }
    return read_experiment(data | {"search": {"space": space}}, source="test")


def test_shares_are_those_of_the_key_that_decides(three):
    trials = searched_trials(
        8,
        train__weight_decay=lambda n: float(n),
        model__depth=lambda n: 5 + (n == 7),
        model__dca__last_k=lambda n: n % 2 + 1 if n < 4 else INACTIVE,
    )
    found = importance(results_of(three, trials))
    shares = found.shares
    assert (found.note, found.tokens) == ("", 256)
    assert list(shares.index) == ["train.weight_decay", "model.dca.last_k", "model.depth"]
    assert shares.loc["train.weight_decay", "share"] > 0.8
    assert shares.loc["model.depth"].tolist()[1:] == [8, True]
    assert 0 < shares.loc["model.dca.last_k", "share"] < 0.5
    assert shares.loc["model.dca.last_k"].tolist()[1:] == [4, False]


def test_a_key_that_varied_alone_has_no_share_and_one_that_did_not_vary_explains_nothing(three):
    columns = {
        "train__weight_decay": float,
        "model__depth": lambda n: 5,
        "model__dca__last_k": lambda n: 3,
    }
    found = importance(results_of(three, searched_trials(20, **columns)))
    shares = found.shares["share"]
    assert math.isnan(shares.pop("train.weight_decay"))
    assert shares.to_dict() == {"model.depth": 0.0, "model.dca.last_k": 0.0}
    assert (found.best, found.obstacle) == ({}, "no key could be compared with another")
    same = {"train__weight_decay": 1.0, "model__depth": 5, "model__dca__last_k": 3}
    found = importance(results_of(three, [trial("complete", [bits], **same) for bits in range(20)]))
    assert (set(found.shares["share"]), found.obstacle) == ({0.0}, "no searched key varied")


def test_a_conditional_key_alone_among_those_that_varied_has_no_share(three):
    same = {"train__weight_decay": 1.0, "model__depth": 5}
    kinds = [1, 2, 3, 4, 5, INACTIVE, INACTIVE]
    trials = [
        trial("complete", [bits], **same, model__dca__last_k=one) for bits, one in enumerate(kinds)
    ]
    found = importance(results_of(three, trials))
    assert math.isnan(found.shares.loc["model.dca.last_k", "share"])
    assert found.obstacle == "no key could be compared with another"


def test_a_key_that_applied_in_too_few_trials_has_no_share(three):
    trials = searched_trials(
        8,
        train__weight_decay=lambda n: float(n),
        model__depth=lambda n: n + 1,
        model__dca__last_k=lambda n: n % 2 + 1 if n < 3 else INACTIVE,
    )
    shares = importance(results_of(three, trials)).shares
    assert math.isnan(shares.loc["model.dca.last_k", "share"])
    assert shares.loc["model.dca.last_k", "trials"] == 3
    assert shares.index[-1] == "model.dca.last_k"


def test_without_a_difference_or_a_search_there_is_a_reason(three):
    decay = {"train__weight_decay": lambda n: n * 1e-10, "model__depth": lambda n: n + 1}
    decay["model__dca__last_k"] = lambda n: 1
    assert importance(results_of(three, searched_trials(4, **decay))).note == (
        "all trials have the same result"
    )
    decay["train__weight_decay"] = lambda n: n * 1e-8
    assert importance(results_of(three, searched_trials(4, **decay))).note == ""
    note = importance(results_of(three, searched_trials(3, **decay))).note
    assert note == "results of trials: 3; at least 4 are needed"
    nothing = results_of(three.replace({"search.space": {}}), [trial("complete", [1.0])])
    assert importance(nothing).note == "nothing was searched"
    assert importance(nothing).shares.empty


def test_fanova_compares_the_latest_five_hundred_trials_and_ped_anova_all(three, monkeypatch):
    monkeypatch.setattr(module, "MAX_TRIALS", 5)
    trials = searched_trials(
        8,
        train__weight_decay=lambda n: float(n),
        model__depth=lambda n: n + 1,
        model__dca__last_k=lambda n: n + 1,
    )
    asked = []

    def shares(results, table, values, keys):
        asked.append(list(table.index))
        return dict.fromkeys(keys, 0.5)

    monkeypatch.setattr(module, "_fanova", shares)
    monkeypatch.setattr(module, "MIN_PED_ANOVA_TRIALS", 8)  # of all eight
    assert importance(results_of(three, trials)).best
    assert asked == [[3, 4, 5, 6, 7]]


def test_ped_anova_names_what_distinguishes_the_best_of_twenty_trials(three):
    columns = {
        "train__weight_decay": lambda n: float(n % 10),
        "model__depth": lambda n: n // 3 % 9 + 1,
        "model__dca__last_k": lambda n: n % 2 + 1 if n % 3 else INACTIVE,
    }
    best = importance(results_of(three, searched_trials(20, **columns))).best
    assert next(iter(best)) == "train.weight_decay"
    assert sum(best.values()) == pytest.approx(1.0)
    assert best.keys() == {"train.weight_decay", "model.depth", "model.dca.last_k"}
    assert importance(results_of(three, searched_trials(19, **columns))).best == {}
