import math

import optuna
import pytest

from pipelines.reporting.importance import importance
from pipelines.reporting.summary import summary
from tests.pipelines.stored import Made


def test_the_key_that_decides_the_result_is_the_most_important(searched, made):
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
