"""What pipelines.compat.optuna relies on is still what Optuna does."""

import sqlite3
import warnings
from datetime import datetime
from itertools import islice
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from pipelines.compat import optuna as compat

SPACE = {"x": FloatDistribution(0.0, 1.0), "n": IntDistribution(1, 4)}


def trial(x: float, value: float, state: TrialState = TrialState.COMPLETE):
    return create_trial(
        state=state,
        params={"x": x, "n": 2},
        distributions=SPACE,
        value=value,
        intermediate_values={1: value},
    )


def test_quiet_ends_with_its_block(caplog):
    verbosity, filters = optuna.logging.get_verbosity(), list(warnings.filters)
    with pytest.raises(RuntimeError), compat.quiet():
        optuna.create_study()
        raise RuntimeError
    assert caplog.records == []
    assert optuna.logging.get_verbosity() == verbosity
    assert list(warnings.filters) == filters
    optuna.create_study()
    assert "A new study created" in caplog.text


def test_what_is_experimental_or_deprecated_warns_but_not_within_quiet():
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        next(compat.quasi_random_points(SPACE, 0))
    with pytest.warns(optuna.exceptions.ExperimentalWarning, match="consider_pruned_trials"):
        optuna.samplers.CmaEsSampler(consider_pruned_trials=True)
    with pytest.warns(optuna.exceptions.ExperimentalWarning, match="source_trials"):
        optuna.samplers.CmaEsSampler(source_trials=[])
    with pytest.warns(FutureWarning, match="`x0` has been deprecated"):
        optuna.samplers.CmaEsSampler(x0={})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with compat.quiet():
            next(compat.quasi_random_points(SPACE, 0))
            compat.cma_es(0, 1, source_trials=[trial(0.5, 1.0)])
            compat.cma_es(0, 1, x0={"x": 0.5, "n": 2})
            optuna.create_study().set_metric_names(["loss"])


def test_quasi_random_points_fill_the_space_evenly_and_a_seed_repeats_them():
    with compat.quiet():
        points = list(islice(compat.quasi_random_points(SPACE, seed=0), 8))
        assert list(islice(compat.quasi_random_points(SPACE, seed=0), 4)) == points[:4]
        assert list(islice(compat.quasi_random_points(SPACE, seed=1), 4)) != points[:4]
    assert sorted(int(4 * point["x"]) for point in points) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {point["n"] for point in points} == {1, 2, 3, 4}


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED])
def test_cma_es_starts_where_its_source_trials_were_best(state):
    """One trial is complete: without one, Optuna has no common space to model."""
    known = [trial(n / 20, abs(n / 20 - 0.8), state) for n in range(21)]
    known.append(trial(0.0, 0.8))
    drawn = [value for seed in range(5) for value in draw(seed, known, source_trials=known)]
    assert sum(abs(x - 0.8) < 0.2 for x in drawn) > 0.7 * len(drawn)


def test_cma_es_starts_at_a_point():
    known = [trial(0.8, 1.0)]
    drawn = [value for seed in range(5) for value in draw(seed, known, x0={"x": 0.8, "n": 2})]
    assert sum(drawn) / len(drawn) > 0.6


def draw(seed: int, known: list, **start) -> list[float]:
    """The first proposals of CMA-ES for x, none of which is ever told."""
    with compat.quiet():
        study = optuna.create_study(sampler=compat.cma_es(seed, 1, **start))
        study.add_trials(known)
        asked = [study.ask(SPACE) for _ in range(4)]
    return [one.params["x"] for one in asked]


def test_enqueued_points_are_asked_for_in_order_before_anything_else():
    """A resumed search enqueues its unfinished trials, and points that are fixed beforehand."""
    with compat.quiet():
        study = optuna.create_study()
    study.enqueue_trial({"x": 0.25, "n": 1})
    study.add_trial(trial(0.5, 1.0))
    study.enqueue_trial({"n": 3})
    first, second, third = (study.ask(SPACE) for _ in range(3))
    assert [one.number for one in (first, second, third)] == [0, 2, 3]
    assert first.params == {"x": 0.25, "n": 1}
    assert second.params["n"] == 3


def test_a_pruned_trial_has_the_value_that_it_reported_last():
    with compat.quiet():
        study = optuna.create_study()
    asked = study.ask(SPACE)
    for step, value in enumerate((3.0, 2.0, 2.5)):
        asked.report(value, step)
    study.tell(asked, state=TrialState.PRUNED)
    assert (study.trials[0].state, study.trials[0].value) == (TrialState.PRUNED, 2.5)


def test_a_stored_study_keeps_the_times_of_its_trials_and_its_file_can_be_closed(tmp_path: Path):
    path = tmp_path / "study.db"
    times = datetime(2024, 1, 1, 12), datetime(2024, 1, 1, 13)
    ended = trial(0.5, 1.0)
    compat.set_times(ended, *times)
    with compat.quiet():
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        optuna.create_study(study_name="tiny", storage=storage).add_trial(ended)
    assert storage.engine.pool.checkedin() > 0
    compat.close(storage)
    assert storage.engine.pool.checkedin() == 0
    with sqlite3.connect(path) as database:
        (row,) = database.execute("select datetime_start, datetime_complete from trials")
    assert tuple(datetime.fromisoformat(time) for time in row) == times
