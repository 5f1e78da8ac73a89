"""Trials and evaluations, read from runs that are made up."""

import json
from types import SimpleNamespace

import pytest

from pipelines.console.errors import DamagedError, EditedError
from pipelines.tracking.trials import (
    StoredTrial,
    configuration_of,
    read_evaluations,
    read_trial,
)

TAGS = {"dca.trial": "7", "dca.values": json.dumps({"model.depth": 2})}


def run(tags=(), metrics=(), params=(), end: int | None = None):
    data = SimpleNamespace(tags=TAGS | dict(tags), metrics=dict(metrics), params=dict(params))
    info = SimpleNamespace(run_id="id", status="RUNNING", start_time=1000, end_time=end)
    return SimpleNamespace(data=data, info=info)


def test_a_trial_that_has_just_begun_has_no_numbers():
    trial = read_trial(run(), "val_bits_per_byte")
    assert (trial.number, trial.run_id, trial.values) == (7, "id", {"model.depth": 2})
    assert (trial.state, trial.objective, trial.second, trial.reason) == (None, None, None, "")
    assert (trial.tokens, trial.seconds, trial.milliseconds) == (0, 0.0, (1000, 1000))
    assert (trial.best, trial.pareto, trial.code, trial.params) == (False, False, "", {})
    assert trial.curve == {}


@pytest.mark.parametrize(
    "tags",
    [
        {"dca.trial": "first"},
        *({"dca.values": text} for text in ("{", "[1]", "null")),
        *({"dca.state": state} for state in ("done", "complete")),  # without an objective
    ],
)
def test_a_trial_whose_tags_were_edited_is_one_line_with_its_run(tags):
    with pytest.raises(DamagedError, match=r"^run id: a tag was edited or removed: "):
        read_trial(run(tags), "val_bits_per_byte")


def test_a_trial_that_has_ended_has_its_state_and_numbers():
    tags = {"dca.state": "pruned", "dca.reason": "r", "dca.best": "true", "dca.pareto": "true"}
    metrics = {"best_train_bits_per_byte": 2.0, "tokens": 512.0, "seconds": 3.5}
    trial = read_trial(run(tags | {"dca.code": "c"}, metrics, end=5000), "train_bits_per_byte")
    assert (trial.state, trial.objective, trial.reason) == ("pruned", 2.0, "r")
    assert (trial.tokens, trial.seconds, trial.milliseconds) == (512, 3.5, (1000, 5000))
    assert (trial.best, trial.code) == (True, "c")


def test_parameters_that_did_not_apply_have_the_values_they_had():
    inactive = {"dca.inactive": json.dumps({"a": "2"})}
    assert configuration_of(run(inactive, params={"a": "n/a", "b": "1"})) == {"a": "2", "b": "1"}
    assert configuration_of(run(inactive)) == {}
    for edited in ("{", "[]"):
        with pytest.raises(
            EditedError, match=r"^run id: tag dca\.inactive: expected values by key"
        ):
            configuration_of(run({"dca.inactive": edited}, params={"a": "1"}))


class Histories:
    """A store with histories of metrics; it counts the requests."""

    def __init__(self, **metrics) -> None:
        self.metrics, self.asked = metrics, list[str]()

    def history(self, run_id: str, metric: str) -> dict[int, float]:
        self.asked.append(metric)
        return self.metrics.get(metric, {})


def test_an_evaluation_has_the_best_value_so_far_of_what_is_minimised():
    val, train = {4: 3.0, 8: 2.0, 12: 2.5}, {2: 1.0, 4: 5.0, 8: 6.0, 12: 4.0}
    store = Histories(val_bits_per_byte=val, train_bits_per_byte=train)
    params = {"train.batch_tokens": "256"}
    found = read_evaluations(store, "id", params, "val_bits_per_byte")
    assert [(one.step, one.tokens, one.bits_per_byte, one.best) for one in found] == [
        *((4, 1024, 3.0, 3.0), (8, 2048, 2.0, 2.0), (12, 3072, 2.5, 2.0)),
    ]
    assert store.asked == ["val_bits_per_byte"]
    other = read_evaluations(store, "id", params, "train_bits_per_byte")
    assert [one.best for one in other] == [5.0, 5.0, 4.0]
    assert read_evaluations(Histories(), "id", params, "val_bits_per_byte") == ()


def test_a_run_that_was_read_before_its_parameters_were_stored_has_no_evaluations_yet():
    store = Histories(val_bits_per_byte={4: 3.0})
    assert read_evaluations(store, "id", {}, "val_bits_per_byte") == ()


def test_a_trial_without_a_run_has_nothing_yet():
    trial = StoredTrial(0, "a", {})
    assert (trial.tokens, trial.seconds, trial.evaluations) == (0, 0.0, ())
    assert (trial.milliseconds, trial.reason, trial.status) == ((0, 0), "", "")
    assert not (trial.best or trial.pareto or trial.code or trial.params or trial.state)
