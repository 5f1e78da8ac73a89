from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from pipelines.search.study import save_study
from pipelines.tracking.trials import StoredTrial
from tests.pipelines.search.trials import (
    SAMPLERS,
    complete,
    draw,
    plain,
    searcher_of,
    stored_as,
)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_repeats_the_suggestions(searched, sampler):
    searched = plain(searched).replace({"search.sampler.name": sampler})

    def draw(seed: int) -> list:
        searcher, _ = searcher_of(searched.replace({"seed": seed}))
        return [searcher.suggest(str(i))["values"] for i in range(5)]

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


def test_a_rebuilt_study_keeps_numbers_states_and_values_and_asks_for_what_is_missing(searched):
    fixed = {"model.residual": "dca", "model.dca.last_k": 2, "train.learning_rate": 5e-3}
    stored = [
        complete(0),
        complete(1, state=None, objective=None, values=fixed),
        complete(3, state="pruned", objective=3.0, curve={1: 3.5, 2: 3.0}),
        complete(4, state="failed", objective=None),
    ]
    searcher, study = searcher_of(searched, stored)
    assert [t.state for t in study.trials] == [
        TrialState.COMPLETE,
        TrialState.WAITING,
        TrialState.PRUNED,
        TrialState.FAIL,
    ]
    assert study.trials[2].intermediate_values == {1: 3.5, 2: 3.0}
    suggested = searcher.suggest("a")
    assert (suggested["number"], suggested["values"]) == (1, fixed)
    assert [searcher.suggest(name)["number"] for name in "bc"] == [2, 5]


def test_a_resumed_search_does_not_draw_its_first_points_again(searched):
    first = searcher_of(searched)[0].suggest("a")["values"]
    resumed = searcher_of(searched, [complete(0, values=first)])[0].suggest("a")
    assert resumed["number"] == 1
    assert resumed["values"]["train.learning_rate"] != first["train.learning_rate"]


def test_the_sampler_learns_from_stored_trials(searched):
    def stored(number: int) -> StoredTrial:
        rate = 10 ** (-4 + 2 * number / 20)
        values = {"model.residual": "standard", "train.learning_rate": rate}
        return complete(number, objective=2 + abs(number - 15), values=values)

    searcher, _ = searcher_of(searched, [stored(number) for number in range(20)])
    rates = [searcher.suggest(str(i))["values"]["train.learning_rate"] for i in range(20)]
    assert sum(1e-3 < rate < 1e-2 for rate in rates) > 14


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_stays_in_the_space_and_goes_on_elsewhere_after_a_resume(searched, sampler):
    searched = plain(searched).replace({"search.sampler.name": sampler, "search.trials": 12})
    first = draw(searcher_of(searched)[0], 6)
    rest = draw(searcher_of(searched, stored_as(first))[0], 20)
    assert (len(first), len(rest)) == (6, 6)
    for values in first + rest:
        assert values["model.depth"] in range(1, 5)
        assert 1e-4 <= values["train.learning_rate"] <= 1e-2
    assert len({values["train.learning_rate"] for values in first + rest}) == 12


def test_every_sampler_has_a_way_of_its_own(searched):
    known = stored_as([{"model.depth": 2, "train.learning_rate": n * 1e-4} for n in range(1, 9)])
    drawn = []
    for sampler in SAMPLERS:
        own = plain(searched).replace({"search.sampler.name": sampler})
        drawn += draw(searcher_of(own, known)[0], 1)
    assert len({values["train.learning_rate"] for values in drawn}) == len(SAMPLERS)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes"])
def test_what_an_earlier_search_found_is_where_the_next_one_begins(searched, sampler):
    searched = plain(searched).replace({"search.sampler.name": sampler})
    rates = [10 ** (-4 + 2 * n / 20) for n in range(21)]
    known = stored_as(
        [{"model.depth": n % 4 + 1, "train.learning_rate": r} for n, r in enumerate(rates)]
    )
    searcher, study = searcher_of(searched, warm_start=known)
    drawn = draw(searcher, 8)
    assert sum(3e-4 < values["train.learning_rate"] < 3e-3 for values in drawn) >= 6
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 29


def test_quasi_random_points_are_the_same_sequence_resumed_or_not(searched):
    searched = plain(searched).replace({"search.sampler.name": "qmc", "search.trials": 8})
    whole = draw(searcher_of(searched)[0], 8)
    resumed = draw(searcher_of(searched, stored_as(whole[:3]))[0], 8)
    assert whole[3:] == resumed
    quarters = sorted(int(4 * (np.log10(v["train.learning_rate"]) + 4) / 2) for v in whole)
    assert quarters == [0, 0, 1, 1, 2, 2, 3, 3]


GRID = {"model.depth": {"int": [2, 3]}, "train.learning_rate": {"choice": [1e-4, 3e-4, 1e-3]}}


def test_a_grid_runs_each_of_its_points_once_resumed_or_not(searched):
    search = {"space": GRID, "sampler": {"name": "grid"}}
    searched = searched.replace({"search": search})
    points = [
        {"model.depth": d, "train.learning_rate": r} for d in (2, 3) for r in (1e-4, 3e-4, 1e-3)
    ]
    assert draw(searcher_of(searched)[0], 99) == points
    assert draw(searcher_of(searched, stored_as(points[:4]))[0], 99) == points[4:]
    assert draw(searcher_of(searched, **{"search.trials": 2})[0], 99) == points[:2]


def test_points_to_try_first_are_tried_first_and_the_rest_of_each_is_sampled(searched):
    first = [
        {"model.residual": "dca", "model.dca.last_k": 2, "train.learning_rate": 1e-3},
        {"train.learning_rate": 2e-3},
    ]
    searched = searched.replace({"search.try_first": first})
    drawn = draw(searcher_of(searched)[0], 3)
    assert drawn[0] == first[0]
    assert drawn[1]["train.learning_rate"] == 2e-3
    assert drawn[1]["model.residual"] in ("standard", "dca")
    resumed = draw(searcher_of(searched, [complete(0, values=drawn[0])])[0], 1)
    assert resumed[0]["train.learning_rate"] == 2e-3


@pytest.mark.parametrize("second", ["parameters", "bytes_per_second"])
@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_two_objectives_are_told_to_the_study_and_again_after_a_resume(searched, second, sampler):
    searched = plain(searched).replace(
        {
            "search.second_objective": second,
            "search.scheduler.name": "none",
            "search.sampler.name": sampler,
        }
    )
    searcher, study = searcher_of(searched)
    (values,) = draw(searcher, 1)
    parameters = searched.replace(values).model.parameter_count()
    expected = parameters if second == "parameters" else 4 / 2.0
    assert study.trials[0].values[1] == expected
    best = "MAXIMIZE" if second == "bytes_per_second" else "MINIMIZE"
    assert [direction.name for direction in study.directions] == ["MINIMIZE", best]
    stored = [complete(0, values=values, second=expected)]
    resumed, again = searcher_of(searched, stored)
    assert again.trials[0].values == [2.0, expected]
    assert len(draw(resumed, 6)) == 6


def read_back(path: Path) -> optuna.Study:
    storage = f"sqlite:///{path}"
    (name,) = optuna.study.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def test_the_exported_study_has_every_trial_with_its_state_values_and_times(searched, tmp_path):
    values = {"model.residual": "dca", "model.dca.last_k": 2, "train.learning_rate": 1e-3}
    times = {"milliseconds": (1_000_000, 1_007_500), "values": values}
    trials = [
        complete(0, objective=2.0, curve={256: 3.0, 512: 2.0}, **times),
        complete(1, state="pruned", objective=3.5, curve={256: 3.5}, **times),
        complete(2, state="failed", objective=None, reason="diverged", **times),
    ]
    save_study(tmp_path / "study.db", searched.search_task(), trials)
    study = read_back(tmp_path / "study.db")
    assert study.study_name == "tiny"
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "FAIL"]
    assert [trial.value for trial in study.trials] == [2.0, 3.5, None]
    assert all(trial.params == values for trial in study.trials)
    assert study.trials[0].intermediate_values == {256: 3.0, 512: 2.0}
    assert {trial.duration.total_seconds() for trial in study.trials} == {7.5}
    assert [trial.user_attrs["mlflow_run"] for trial in study.trials] == ["0", "1", "2"]
    assert study.trials[2].user_attrs["reason"] == "diverged"
    assert study.metric_names == ["val_bits_per_byte"]
    assert study.best_trial.number == 0


def test_the_exported_study_of_two_objectives_has_both(searched, tmp_path):
    two = {"search.second_objective": "bytes_per_second", "search.scheduler.name": "none"}
    trials = [complete(0, second=5.0), complete(1, second=9.0)]
    save_study(tmp_path / "study.db", searched.replace(two).search_task(), trials)
    study = read_back(tmp_path / "study.db")
    assert study.metric_names == ["val_bits_per_byte", "bytes_per_second"]
    assert [trial.number for trial in study.best_trials] == [1]
    assert study.trials[1].values == [2.0, 9.0]
