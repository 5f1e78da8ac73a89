"""Which stored trials belong to a search: those whose configuration lies in its space."""

import json
import time
from typing import Any

import pytest

from pipelines.console.errors import ConfigError
from pipelines.experiment import Experiment
from pipelines.search.resume import (
    StoredSearch,
    earlier_trials,
    join,
    joining,
    reopen,
    stored_search,
)
from pipelines.tracking.encoding import encode_param
from pipelines.tracking.schema import PARAMETERS_TAG
from pipelines.tracking.store import Store
from tests.pipelines.search.trials import draw, searcher_of

RATE = "train.learning_rate"
SPACE = {RATE: {"log_uniform": [1e-3, 1e-2]}}


@pytest.fixture
def base(experiment: Experiment) -> Experiment:
    """The small experiment with a range of learning rates."""
    return experiment.replace({"search": {"space": SPACE, "trials": 8}})


def put_search(store: Store, experiment: Experiment, trials: list[dict[str, Any]]) -> str:
    """A search's run with complete trials of these values, as the recorder stores them."""
    run = store.create("search", f"search {len(trials)}", "search", params={"corpus": "text"})
    put_trials(store, experiment, run, trials)
    return run


def put_trials(
    store: Store, experiment: Experiment, run: str, trials: list[dict[str, Any]], first: int = 0
) -> None:
    for number, values in enumerate(trials, first):
        inactive = {
            key: encode_param(experiment.get(key))
            for key in experiment.search.space
            if key not in values
        }
        tags = {"dca.trial": str(number), "dca.values": json.dumps(values)}
        trial = store.create(
            "trial",
            f"{run}/{number}",
            "trial",
            parent=run,
            params=experiment.training_run().params | values | dict.fromkeys(inactive, "n/a"),
            tags=tags | {"dca.inactive": json.dumps(inactive)},
        )
        store.tag(trial, {"dca.state": "complete"})
        store.log_metrics(trial, {"tokens": 1024, "best_val_bits_per_byte": 2.0 + number / 10})
        store.end(trial)


def found(store: Store, run: str, experiment: Experiment, **changes: Any) -> StoredSearch:
    return stored_search(store, run, experiment.replace(changes).search_task())


def numbers(store: Store, run: str, experiment: Experiment, **changes: Any) -> list[int]:
    return [trial.number for trial in found(store, run, experiment, **changes).trials]


@pytest.mark.extended
@pytest.mark.parametrize(
    "changes",
    [
        {"search.trials": 12},
        {"search.trials": 1},
        {"search.max_tokens": 5000, "search.max_seconds": 60},
        {"search.space": {RATE: {"log_uniform": [1e-4, 1e-1]}}},
        {"search.space": {RATE: {"uniform": [0.001, 0.05]}}},
        {"search.space": {RATE: {"choice": [2e-3, 4e-3, 8e-3]}}},
        {"search.space": {**SPACE, "train.weight_decay": {"uniform": [0, 1]}}},
        {"search.space": {**SPACE, "train.schedule": {"choice": ["cosine", "wsd"]}}},
        {"search.sampler.name": "random", "search.scheduler.name": "none"},
        {"failures.retries": 9},
        {"data.path": "elsewhere.txt"},
    ],
)
def test_trials_that_lie_in_a_search_that_has_grown_belong_to_it(store, base, changes):
    run = put_search(store, base, [{RATE: 2e-3}, {RATE: 8e-3}])
    assert numbers(store, run, base, **changes) == [0, 1]


@pytest.mark.parametrize(
    ("changes", "inside"),
    [
        ({"search.space": {RATE: {"log_uniform": [1e-3, 5e-3]}}}, [0]),
        ({"search.space": {RATE: {"choice": [8e-3]}}}, [1]),
        ({"search.space": {"train.weight_decay": {"uniform": [0, 1]}}, RATE: 8e-3}, [1]),
        ({"search.space": {**SPACE, "train.weight_decay": {"uniform": [0.5, 1]}}}, []),
        ({"model.depth": 3}, []),
        ({"train.beta2": 0.99}, []),
        ({"train.tokens": 8192}, []),
    ],
)
def test_trials_outside_the_space_are_left_alone(store, base, changes, inside):
    run = put_search(store, base, [{RATE: 2e-3}, {RATE: 8e-3}])
    search = found(store, run, base, **changes)
    assert [trial.number for trial in search.trials] == inside
    assert len(search.outside) == 2 - len(inside)
    assert search.numbers == {0, 1}


def test_a_trial_has_values_of_the_keys_that_are_searched_now(store, base):
    run = put_search(store, base, [{RATE: 2e-3}])
    space = {**SPACE, "train.weight_decay": {"uniform": [0, 1]}, "model.depth": {"int": [1, 9]}}
    (trial,) = found(store, run, base, **{"search.space": space}).trials
    assert trial.values == {
        RATE: 2e-3,
        "train.weight_decay": base.train.weight_decay,
        "model.depth": base.model.depth,
    }


CONDITIONAL = {
    "model.residual": {"choice": ["standard", "dca"]},
    "model.dca.last_k": {"choice": [1, 2], "when": {"model.residual": "dca"}},
}


def test_a_key_that_did_not_apply_has_the_value_that_was_trained_with(store, base):
    searched = base.replace({"search.space": CONDITIONAL, "model.dca.last_k": 2})
    values = [{"model.residual": "standard"}, {"model.residual": "dca", "model.dca.last_k": 1}]
    run = put_search(store, searched, values)
    assert [trial.values for trial in found(store, run, searched).trials] == values
    always = {
        "model.residual": CONDITIONAL["model.residual"],
        "model.dca.last_k": {"choice": [1, 2]},
    }
    both = found(store, run, searched, **{"search.space": always}).trials
    assert [trial.values["model.dca.last_k"] for trial in both] == [2, 1]


def test_an_option_that_a_trial_does_not_read_may_change(store, base):
    kinds = {"model.residual": {"choice": ["standard", "grn_v1", "dca"]}}
    values = [{"model.residual": kind} for kind in ("standard", "grn_v1", "dca")]
    searched = base.replace({"search.space": kinds})
    run = put_search(store, searched, values)
    assert numbers(store, run, searched, **{"model.dca.last_k": 1}) == [0]
    assert numbers(store, run, searched, **{"model.dca.init_std": 0.1}) == [0, 1]
    assert numbers(store, run, searched, **{"model.mhc.streams": 2}) == [0, 1, 2]
    assert numbers(store, run, searched, **{"model.depth": 3}) == []
    schedules = {"train.schedule": {"choice": ["cosine", "wsd"]}}
    searched = base.replace({"search.space": schedules})
    run = put_search(store, searched, [{"train.schedule": name} for name in ("cosine", "wsd")])
    assert numbers(store, run, searched, **{"train.decay_fraction": 0.3}) == [0]
    assert numbers(store, run, searched, **{"train.final_learning_rate_fraction": 0.3}) == []


def test_a_trial_of_a_kind_that_is_no_more_is_outside(store, base):
    kinds = {"model.residual": {"choice": ["standard", "dca"]}}
    run = put_search(store, base, [{"model.residual": "gone"}, {"model.residual": "dca"}])
    assert numbers(store, run, base, **{"search.space": kinds}) == [1]
    assert numbers(store, run, base, **{"model.residual": "dca"}) == [1]


def test_a_key_that_is_younger_than_a_trial_has_its_default(store, base):
    run = store.create("search", "older", "search", params={"corpus": "text"})
    params = base.training_run().params | {RATE: 2e-3}
    del params["train.beta2"]
    tags = {"dca.trial": "0", "dca.values": json.dumps({RATE: 2e-3})}
    store.create("trial", f"{run}/0", "trial", parent=run, params=params, tags=tags)
    assert numbers(store, run, base) == [0]
    assert numbers(store, run, base, **{"train.beta2": 0.9}) == []


def test_a_trial_that_was_killed_before_its_parameters_were_stored_is_found(store, base):
    searched = base.replace({"search.space": CONDITIONAL})
    run = store.create("search", "killed", "search", params={"corpus": "text"})
    values = {"model.residual": "standard"}
    tags = {"dca.trial": "0", "dca.values": json.dumps(values)}
    tags["dca.inactive"] = json.dumps({"model.dca.last_k": "null"})
    store.create("trial", f"{run}/0", "trial", parent=run, tags=tags)
    (trial,) = found(store, run, searched).trials
    assert (trial.values, trial.state) == (values, None)


def test_a_warm_start_of_the_search_itself_or_of_pruned_trials_is_no_error(store, base):
    run = put_search(store, base, [{RATE: 2e-3}, {RATE: 8e-3}])
    itself = base.replace({"search.warm_start": ["tiny"]})
    assert earlier_trials(itself.search_task(), "text", run) == []
    pruned = store.children(run, "trial")[0].info.run_id
    store.tag(pruned, {"dca.state": "pruned"})
    assert len(earlier_trials(itself.search_task(), "text")) == 2
    two = {"search.second_objective": "parameters", "search.scheduler.name": "none"}
    assert len(earlier_trials(itself.replace(two).search_task(), "text")) == 1


def test_a_number_that_is_stored_as_an_integer_is_the_same_real_number(store, base):
    run = put_search(store, base.replace({"train.weight_decay": 0}), [{RATE: 2e-3}])
    space = {**SPACE, "train.weight_decay": {"choice": [0, 0.1]}}
    (trial,) = found(store, run, base, **{"search.space": space}).trials
    assert trial.values["train.weight_decay"] == 0
    run = put_search(store, base, [{"train.weight_decay": 0}, {"train.weight_decay": 1}])
    fixed = {"search.space": {RATE: {"choice": [base.train.learning_rate]}}}
    assert numbers(store, run, base, **fixed, **{"train.weight_decay": 0.0}) == [0]


def test_new_trials_take_free_numbers_and_learn_from_those_in_the_space(store, base):
    run = put_search(store, base, [{RATE: 2e-3}, {RATE: 8e-3}])
    narrow = base.replace({"search.space": {RATE: {"log_uniform": [1e-3, 5e-3]}}})
    stored = found(store, run, narrow)
    searcher, study = searcher_of(narrow, stored)
    assert [trial.params for trial in study.trials] == [{RATE: 2e-3}]
    assert searcher.suggest("a")["number"] == 2
    assert len(draw(searcher_of(narrow, stored)[0], 99)) == 7


@pytest.mark.parametrize(
    ("before", "after", "new"),
    [
        ([2e-3, 8e-3], [2e-3, 4e-3, 8e-3], [4e-3]),
        ([2e-3, 8e-3], [1e-3, 8e-3, 2e-3], [1e-3]),
        ([2e-3, 4e-3, 8e-3], [2e-3, 8e-3], []),
    ],
)
def test_a_grid_with_another_choice_runs_the_new_points_alone(store, base, before, after, new):
    run = put_search(store, base, [{RATE: rate} for rate in before])
    search = {"sampler": {"name": "grid"}, "space": {RATE: {"choice": after}}}
    grid = base.replace({"search": search})
    drawn = draw(searcher_of(grid, found(store, run, grid))[0], 99)
    assert drawn == [{RATE: rate} for rate in new]


def test_points_to_try_first_that_are_added_later_are_tried_next(store, base):
    run = put_search(store, base, [{RATE: 2e-3}, {RATE: 8e-3}])
    first = [{RATE: 8e-3}, {RATE: 3e-3}]
    grown = base.replace({"search.try_first": first})
    assert draw(searcher_of(grown, found(store, run, grown))[0], 1) == [{RATE: 3e-3}]


def test_the_searches_of_instances_neither_take_nor_give_trials(store, base):
    runs = [put_search(store, base, [{RATE: 2e-3}] * count) for count in (1, 2, 3)]
    for run in runs:
        store.tag(run, {"dca.basis": "same"})
    task = base.search_task()
    assert [len(joining(store, run, task)) for run in runs] == [5, 4, 3]
    store.tag(runs[2], {"dca.instance": "search[a]"})
    assert [len(joining(store, run, task)) for run in runs] == [2, 1, 0]


def test_failed_trials_stay_in_their_search_with_their_checkpoints(store, base):
    runs = [put_search(store, base, [{RATE: 2e-3}] * count) for count in (1, 2)]
    for run in runs:
        store.tag(run, {"dca.basis": "same"})
    failed, _ = store.children(runs[1], "trial")
    store.tag(failed.info.run_id, {"dca.state": "failed"})
    task = base.search_task()
    assert [len(joining(store, run, task)) for run in runs] == [1, 1]
    assert join(store, runs[0], task) == 1
    assert [run.info.run_id for run in store.children(runs[1], "trial")] == [failed.info.run_id]


def test_the_number_of_parameters_is_that_which_was_stored(store, base):
    run = put_search(store, base, [{RATE: 2e-3}])
    two = {"search.second_objective": "parameters", "search.scheduler.name": "none"}
    (counted,) = found(store, run, base, **two).trials
    assert counted.second == base.model.parameter_count()
    store.tag(counted.run_id, {PARAMETERS_TAG: "123"})
    assert found(store, run, base, **two).trials[0].second == 123


def test_a_failed_trial_that_is_opened_again_is_unfinished(store, base):
    run = put_search(store, base, [{RATE: 2e-3}])
    (trial,) = found(store, run, base).trials
    store.tag(trial.run_id, {"dca.state": "failed", "dca.reason": "MemoryError"})
    reopen(store, found(store, run, base).trials[0])
    (again,) = found(store, run, base).trials
    assert (again.run_id, again.state, again.reason) == (trial.run_id, None, "")
    assert found(store, run, base).missing(1) == 1


def test_a_warm_start_takes_the_trials_in_the_space_of_the_same_text(store, base):
    put_search(store, base, [{RATE: 2e-3}, {RATE: 8e-3}])
    narrow = {"search.space": {RATE: {"choice": [8e-3]}}, "search.warm_start": ["tiny"], "seed": 5}
    task = base.replace(narrow).search_task()
    assert [trial.values for trial in earlier_trials(task, "text")] == [{RATE: 8e-3}]
    with pytest.raises(ConfigError, match=r"warm_start: tiny: its corpus is text, here other"):
        earlier_trials(task, "other")
    deeper = base.replace({**narrow, "model.depth": 9}).search_task()
    message = (
        r"tiny: none of its trials, of which there are 2, lies in the space, as its model\.depth "
        "is 2, here 9"
    )
    with pytest.raises(ConfigError, match=message):
        earlier_trials(deeper, "text")


def test_a_search_over_seven_hundred_values_is_taken_again_at_once(store, base):
    rates = [round(1e-4 + 1e-6 * n, 9) for n in range(700)]
    space = {RATE: {"choice": rates}, "model.depth": {"choice": [*range(1, 701)]}}
    start = time.process_time()
    long = base.replace({"search.space": space})
    run = put_search(store, long, [{RATE: rate, "model.depth": 1} for rate in (rates[0], 9.0)])
    assert numbers(store, run, long) == [0]
    again = long.replace({"search.warm_start": ["tiny"], "seed": 5}).search_task()
    assert [trial.values[RATE] for trial in earlier_trials(again, "text")] == [rates[0]]
    assert time.process_time() - start < 3


def test_a_value_that_the_store_would_cut_is_compared_as_a_whole(store, base):
    windows = [64, None] * 1000
    long = base.replace({"model.attention_windows": windows})
    run = put_search(store, long, [{RATE: 2e-3}])
    assert numbers(store, run, long) == [0]
    assert len(earlier_trials(long.replace({"search.warm_start": ["tiny"]}).search_task(), "text"))
    other = long.replace({"model.attention_windows": [*windows[:-1], 65]})
    assert numbers(store, run, other) == []
