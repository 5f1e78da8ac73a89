from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from pipelines.console.errors import ConfigError, PipelineError
from pipelines.experiment import Experiment
from pipelines.search import study as study_module
from pipelines.search.resume import StoredTrial
from pipelines.search.schedulers import scheduler_of
from pipelines.search.searcher import StudySearcher
from pipelines.search.space import Space
from pipelines.search.study import build_study, save_study

SPACE = {
    "model.last_k": {"choice": [1, 2], "when": {"model.residual": "dca"}},
    "model.residual": {"choice": ["standard", "dca"]},
    "train.learning_rate": {"log_uniform": [1e-4, 1e-2]},
}


PLAIN = {
    "model.depth": {"int": [1, 4]},
    "train.learning_rate": {"log_uniform": [1e-4, 1e-2]},
}
"""A space that every sampler but the grid knows."""
SAMPLERS = ["tpe", "gp", "cmaes", "qmc", "random"]


def plain(config: Experiment) -> Experiment:
    return config.replace({"search.space": PLAIN})


@pytest.fixture
def config(config: Experiment) -> Experiment:
    search = {"space": SPACE, "trials": 100}
    return config.replace({"search": search, "failures.retries": 0})


def searcher_of(config: Experiment, stored=(), earlier=(), open_run=None, **changes):
    config = config.replace(changes)
    space = Space(config)
    study = build_study(config, space, list(stored), list(earlier))
    open_run = open_run or (lambda *_: made())
    given = {"stored": stored, "earlier": len(earlier), "open_run": open_run}
    return StudySearcher(study, space, config, **given), study


def made() -> Future[str]:
    """A run that is stored."""
    future: Future[str] = Future()
    future.set_result("run")
    return future


def result(objective: float, tokens: int, *, finished: bool) -> dict:
    curve = [(tokens, objective)]
    row = {"tokens": float(tokens), "seconds": 2.0}
    return {
        "objective": objective,
        "tokens": tokens,
        "curve": curve,
        "finished": finished,
        "rows": [row],
    }


def complete(number: int, **changes) -> StoredTrial:
    values = {"model.residual": "standard", "train.learning_rate": 1e-3}
    stored = {"state": "complete", "objective": 2.0, "values": values, **changes}
    return StoredTrial(number=number, run_id=str(number), **stored)


def test_a_condition_decides_whether_a_key_is_searched(config):
    searcher, _ = searcher_of(config)
    drawn = [searcher.suggest(str(i))["values"] for i in range(30)]
    kinds = {values["model.residual"] for values in drawn}
    assert kinds == {"standard", "dca"}
    for values in drawn:
        assert ("model.last_k" in values) == (values["model.residual"] == "dca")
        assert 1e-4 <= values["train.learning_rate"] <= 1e-2
        config.replace(values)


def test_a_condition_may_be_on_a_key_that_is_not_searched(config):
    space = {key: SPACE[key] for key in ("model.last_k", "train.learning_rate")}
    fixed = config.replace({"search": {"space": space}, "model.residual": "standard"})
    assert list(searcher_of(fixed)[0].suggest("a")["values"]) == ["train.learning_rate"]
    assert Space(fixed).inactive({"train.learning_rate": 1}) == ["model.last_k"]


def test_conditions_in_a_circle_are_refused(config):
    space = {
        "model.depth": {"int": [1, 2], "when": {"model.last_k": 1}},
        "model.last_k": {"int": [1, 2], "when": {"model.depth": 1}},
    }
    with pytest.raises(ConfigError, match="circle: model"):
        config.replace({"search": {"space": space}})


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_repeats_the_suggestions(config, sampler):
    config = plain(config).replace({"search.sampler.name": sampler})

    def draw(seed: int) -> list:
        searcher, _ = searcher_of(config.replace({"seed": seed}))
        return [searcher.suggest(str(i))["values"] for i in range(5)]

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


def test_the_study_is_told_how_each_trial_really_ended(config):
    searcher, study = searcher_of(config)
    for name in ("complete", "pruned", "failed", "silent", "diverged"):
        searcher.suggest(name)
    searcher.on_trial_result("complete", result(3.0, 1, finished=False))
    searcher.on_trial_complete("complete", result(2.0, 4, finished=True))
    searcher.on_trial_result("pruned", result(5.0, 1, finished=False))
    searcher.on_trial_complete("pruned", result(4.0, 2, finished=False))
    searcher.on_trial_complete("failed", result(1.0, 2, finished=False), error=True)
    searcher.on_trial_complete("silent", None)
    searcher.on_trial_complete("diverged", {"failed": "diverged at step 3", "done": True})
    done, pruned, failed, silent, diverged = study.trials
    assert (done.state, done.value) == (TrialState.COMPLETE, 2.0)
    assert pruned.state == TrialState.PRUNED
    assert pruned.intermediate_values == {1: 5.0, 2: 4.0}
    assert {failed.state, silent.state, diverged.state} == {TrialState.FAIL}
    assert {failed.value, silent.value, diverged.value} == {None}
    assert study.best_trial.number == 0


def test_a_rebuilt_study_keeps_numbers_states_and_values_and_asks_for_what_is_missing(config):
    fixed = {"model.residual": "dca", "model.last_k": 2, "train.learning_rate": 5e-3}
    stored = [
        complete(0),
        complete(1, state=None, objective=None, values=fixed),
        complete(3, state="pruned", objective=3.0, curve={1: 3.5, 2: 3.0}),
        complete(4, state="failed", objective=None),
    ]
    searcher, study = searcher_of(config, stored)
    assert [t.state for t in study.trials] == [
        TrialState.COMPLETE,
        TrialState.WAITING,
        TrialState.WAITING,
        TrialState.PRUNED,
        TrialState.FAIL,
    ]
    assert study.trials[3].intermediate_values == {1: 3.5, 2: 3.0}
    assert searcher.suggest("a") == {"number": 1, "values": fixed}
    assert [searcher.suggest(name)["number"] for name in "bc"] == [2, 5]


def test_a_resumed_search_does_not_draw_its_first_points_again(config):
    first = searcher_of(config)[0].suggest("a")["values"]
    resumed = searcher_of(config, [complete(0, values=first)])[0].suggest("a")
    assert resumed["number"] == 1
    assert resumed["values"]["train.learning_rate"] != first["train.learning_rate"]


def test_the_sampler_learns_from_stored_trials(config):
    def stored(number: int) -> StoredTrial:
        rate = 10 ** (-4 + 2 * number / 20)
        values = {"model.residual": "standard", "train.learning_rate": rate}
        return complete(number, objective=2 + abs(number - 15), values=values)

    searcher, _ = searcher_of(config, [stored(number) for number in range(20)])
    rates = [searcher.suggest(str(i))["values"]["train.learning_rate"] for i in range(20)]
    assert sum(1e-3 < rate < 1e-2 for rate in rates) > 14


def test_the_token_budget_ends_the_search(config):
    searcher, _ = searcher_of(config, [complete(0, tokens=40)], **{"search.max_tokens": 100})
    assert searcher.suggest("a")["number"] == 1
    searcher.on_trial_result("a", result(1.0, 50, finished=False))
    assert searcher.suggest("b")["number"] == 2
    searcher.on_trial_complete("a", result(1.0, 60, finished=True))
    assert searcher.suggest("c") is None  # b may crash, and start again
    searcher.on_trial_complete("b", result(1.0, 60, finished=True))
    assert searcher.suggest("c") == "FINISHED"


def test_an_unfinished_trial_is_taken_up_whatever_the_token_budget(config):
    stored = [complete(0, tokens=10), complete(1, state=None)]
    searcher, _ = searcher_of(config, stored, **{"search.max_tokens": 10})
    assert searcher.suggest("a")["number"] == 1
    searcher.on_trial_complete("a", result(1.0, 60, finished=True))
    assert searcher.suggest("b") == "FINISHED"


def test_a_crashed_trial_is_handed_out_again_first_as_often_as_configured(config):
    searcher, study = searcher_of(config, **{"search.trials": 2, "failures.retries": 2})
    first = searcher.suggest("a")
    searcher.on_trial_result("a", result(3.0, 1, finished=False))
    for retry, (before, after) in enumerate((("a", "b"), ("b", "c")), 1):
        searcher.on_trial_complete(before, error=True)
        assert searcher.retries(0) == retry
        assert searcher.suggest(after) == first
        assert searcher.retries(0) == 0
    searcher.on_trial_result("c", result(3.0, 1, finished=False))  # replayed
    assert searcher.suggest("d")["number"] == 1
    assert searcher.suggest("e") is None
    searcher.on_trial_complete("c", error=True)
    assert searcher.retries(0) == 0
    searcher.on_trial_complete("d", result(2.0, 4, finished=True))
    assert searcher.suggest("e") == "FINISHED"
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert study.trials[0].intermediate_values == {1: 3.0}


def test_a_trial_waits_for_its_run_and_others_do_not(config):
    runs = [made(), Future()]
    searcher, _ = searcher_of(config, open_run=lambda number, _: runs[number])
    assert searcher.suggest("a")["number"] == 0
    assert searcher.suggest("b") is None
    searcher.on_trial_result("a", result(3.0, 1, finished=False))
    runs[1].set_result("stored")
    assert searcher.suggest("b")["number"] == 1


def test_a_trial_whose_run_cannot_be_made_is_not_handed_out(config):
    refused: Future[str] = Future()
    refused.set_exception(PipelineError("the store says no"))
    searcher, _ = searcher_of(config, open_run=lambda *_: refused)
    with pytest.raises(PipelineError, match="says no"):
        searcher.suggest("a")


def never(*_) -> bool:
    return False


def stops(asha, number: int, *curve: tuple[int, float]) -> bool:
    trial = SimpleNamespace(config={"number": number})
    asha.on_trial_add(None, trial)
    return asha.on_trial_result(None, trial, {"curve": curve}) == "STOP"


def test_a_resumed_search_stops_trials_by_what_it_had_reached_before(config):
    rung = config.train.eval_steps[1] * config.train.batch_tokens
    known = [complete(n, state="pruned", curve={rung: 2.0 + n / 10}) for n in range(3)]
    assert not stops(scheduler_of(config, [], never), 9, (rung, 3.0))
    assert stops(scheduler_of(config, known, never), 9, (rung, 3.0))
    assert not stops(scheduler_of(config, known, never), 9, (rung, 1.0))


def test_a_trial_that_starts_again_stands_on_a_rung_once_with_its_value_there(config):
    rung = config.train.eval_steps[1] * config.train.batch_tokens
    asha = scheduler_of(config, [], never)
    assert not stops(asha, 0, (rung, 3.0))
    assert stops(asha, 1, (rung, 3.5))
    assert not stops(asha, 2, (rung, 2.0))
    assert not stops(asha, 0, (rung, 3.0), (2 * rung, 1.0))
    assert asha._brackets[0]._rungs[-1][1] == {0: -3.0, 1: -3.5, 2: -2.0}
    known = [complete(0, state=None, curve={rung: 3.0}), complete(1, curve={rung: 2.0})]
    assert not stops(scheduler_of(config, known, never), 0, (rung, 3.0))


def draw(searcher: StudySearcher, count: int) -> list[dict]:
    """What the next trials try, each completed before the next is asked for."""
    drawn = []
    for number in range(count):
        suggested = searcher.suggest(str(number))
        if suggested == "FINISHED":
            break
        drawn.append(suggested["values"])
        rate = suggested["values"].get("train.learning_rate", 1.0)
        searcher.on_trial_complete(str(number), result(abs(rate - 1e-3), 4, finished=True))
    return drawn


def stored_as(drawn: list[dict]) -> list[StoredTrial]:
    return [
        complete(n, values=v, objective=abs(v["train.learning_rate"] - 1e-3))
        for n, v in enumerate(drawn)
    ]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_stays_in_the_space_and_goes_on_elsewhere_after_a_resume(config, sampler):
    config = plain(config).replace({"search.sampler.name": sampler, "search.trials": 12})
    first = draw(searcher_of(config)[0], 6)
    rest = draw(searcher_of(config, stored_as(first))[0], 20)
    assert (len(first), len(rest)) == (6, 6)
    for values in first + rest:
        assert values["model.depth"] in range(1, 5)
        assert 1e-4 <= values["train.learning_rate"] <= 1e-2
    assert len({values["train.learning_rate"] for values in first + rest}) == 12


def test_every_sampler_has_a_way_of_its_own(config):
    known = stored_as([{"model.depth": 2, "train.learning_rate": n * 1e-4} for n in range(1, 9)])
    drawn = []
    for sampler in SAMPLERS:
        own = plain(config).replace({"search.sampler.name": sampler})
        drawn += draw(searcher_of(own, known)[0], 1)
    assert len({values["train.learning_rate"] for values in drawn}) == len(SAMPLERS)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes"])
def test_what_an_earlier_search_found_is_where_the_next_one_begins(config, sampler):
    config = plain(config).replace({"search.sampler.name": sampler})
    rates = [10 ** (-4 + 2 * n / 20) for n in range(21)]
    known = stored_as(
        [{"model.depth": n % 4 + 1, "train.learning_rate": r} for n, r in enumerate(rates)]
    )
    searcher, study = searcher_of(config, earlier=known)
    drawn = draw(searcher, 8)
    assert sum(3e-4 < values["train.learning_rate"] < 3e-3 for values in drawn) >= 6
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 29


def test_the_trials_of_a_warm_started_search_have_numbers_of_its_own(config):
    known = [complete(0), complete(1, state="pruned", objective=3.0, curve={1: 3.0})]
    own = [complete(0), complete(1, state=None)]
    opened = []
    searcher, _ = searcher_of(
        config, own, earlier=known, open_run=lambda number, _: opened.append(number) or made()
    )
    assert [searcher.suggest(name)["number"] for name in "ab"] == [1, 2]
    assert opened == [1, 2]
    searcher.on_trial_complete("a", error=True)
    assert searcher.retries(1) == 0


def test_quasi_random_points_are_the_same_sequence_resumed_or_not(config):
    config = plain(config).replace({"search.sampler.name": "qmc", "search.trials": 8})
    whole = draw(searcher_of(config)[0], 8)
    resumed = draw(searcher_of(config, stored_as(whole[:3]))[0], 8)
    assert whole[3:] == resumed
    quarters = sorted(int(4 * (np.log10(v["train.learning_rate"]) + 4) / 2) for v in whole)
    assert quarters == [0, 0, 1, 1, 2, 2, 3, 3]


GRID = {"model.depth": {"int": [2, 3]}, "train.learning_rate": {"choice": [1e-4, 3e-4, 1e-3]}}


def test_a_grid_runs_each_of_its_points_once_resumed_or_not(config):
    search = {"space": GRID, "sampler": {"name": "grid"}}
    config = config.replace({"search": search})
    points = [
        {"model.depth": d, "train.learning_rate": r} for d in (2, 3) for r in (1e-4, 3e-4, 1e-3)
    ]
    assert draw(searcher_of(config)[0], 99) == points
    assert draw(searcher_of(config, stored_as(points[:4]))[0], 99) == points[4:]
    assert draw(searcher_of(config, **{"search.trials": 2})[0], 99) == points[:2]


def test_points_to_try_first_are_tried_first_and_the_rest_of_each_is_sampled(config):
    first = [
        {"model.residual": "dca", "model.last_k": 2, "train.learning_rate": 1e-3},
        {"train.learning_rate": 2e-3},
    ]
    config = config.replace({"search.try_first": first})
    drawn = draw(searcher_of(config)[0], 3)
    assert drawn[0] == first[0]
    assert drawn[1]["train.learning_rate"] == 2e-3
    assert drawn[1]["model.residual"] in ("standard", "dca")
    resumed = draw(searcher_of(config, [complete(0, values=drawn[0])])[0], 1)
    assert resumed[0]["train.learning_rate"] == 2e-3


def test_points_to_try_first_wait_for_a_budget_and_unfinished_trials_do_not(config):
    first = [{"train.learning_rate": rate} for rate in (1e-3, 2e-3, 3e-3)]
    config = config.replace({"search.try_first": first, "search.max_seconds": 10})
    stored, space = [complete(0, state=None)], Space(config)
    study = build_study(config, space, stored)
    searcher = StudySearcher(
        study, space, config, open_run=lambda *_: made(), stored=stored, seconds=10.0
    )
    assert searcher.suggest("a")["number"] == 0
    searcher.on_trial_complete("a", result(1.0, 60, finished=True))
    assert searcher.suggest("b") == "FINISHED"


def test_the_clock_of_a_budget_starts_with_the_first_trial(config, monkeypatch):
    now = 0.0
    monkeypatch.setattr(study_module.time, "monotonic", lambda: now)
    searcher, _ = searcher_of(config, **{"search.max_seconds": 10})
    now = 100.0  # Ray has started
    assert searcher.suggest("a")["number"] == 0
    now = 109.0
    assert searcher.suggest("b")["number"] == 1
    now = 110.0
    assert searcher.suggest("c") is None


@pytest.mark.parametrize("resumed", [False, True])
def test_median_stopping_ends_what_is_worse_than_half_of_the_completed(config, resumed):
    config = config.replace({"search.scheduler.name": "median", "search.scheduler.grace_evals": 2})
    steps = [step * config.train.batch_tokens for step in config.train.eval_steps]
    curves = [{t: 4.0 + n / 10 - i / 2 for i, t in enumerate(steps)} for n in range(5)]
    known = [
        complete(n, curve=curve, objective=min(curve.values()), tokens=steps[-1])
        for n, curve in enumerate(curves)
    ]
    searcher, _ = searcher_of(config, known if resumed else known[:3])
    for name, second in (("good", 3.6), ("bad", 3.8)):
        number = searcher.suggest(name)["number"]
        trial = SimpleNamespace(trial_id=name, config={"number": number})
        scheduler = scheduler_of(config, known, searcher.should_prune)
        early = {**result(9.0, steps[0], finished=False)}
        assert scheduler.on_trial_result(None, trial, early) == "CONTINUE"
        late = {**result(second, steps[1], finished=False)}
        verdict = scheduler.on_trial_result(None, trial, late)
        assert verdict == ("STOP" if resumed and name == "bad" else "CONTINUE")


@pytest.mark.parametrize("second", ["parameters", "bytes_per_second"])
@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_two_objectives_are_told_to_the_study_and_again_after_a_resume(config, second, sampler):
    config = plain(config).replace(
        {
            "search.second_objective": second,
            "search.scheduler.name": "none",
            "search.sampler.name": sampler,
        }
    )
    searcher, study = searcher_of(config)
    (values,) = draw(searcher, 1)
    parameters = config.replace(values).model.parameter_count()
    expected = parameters if second == "parameters" else 4 / 2.0
    assert study.trials[0].values[1] == expected
    best = "MAXIMIZE" if second == "bytes_per_second" else "MINIMIZE"
    assert [direction.name for direction in study.directions] == ["MINIMIZE", best]
    stored = [complete(0, values=values, second=expected)]
    resumed, again = searcher_of(config, stored)
    assert again.trials[0].values == [2.0, expected]
    assert len(draw(resumed, 6)) == 6


def read_back(path: Path) -> optuna.Study:
    storage = f"sqlite:///{path}"
    (name,) = optuna.study.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def test_the_exported_study_has_every_trial_with_its_state_values_and_times(config, tmp_path):
    values = {"model.residual": "dca", "model.last_k": 2, "train.learning_rate": 1e-3}
    times = {"milliseconds": (1_000_000, 1_007_500), "values": values}
    trials = [
        complete(0, objective=2.0, curve={256: 3.0, 512: 2.0}, **times),
        complete(1, state="pruned", objective=3.5, curve={256: 3.5}, **times),
        complete(2, state="failed", objective=None, reason="diverged", **times),
    ]
    save_study(tmp_path / "study.db", config, trials)
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


def test_the_exported_study_of_two_objectives_has_both(config, tmp_path):
    two = {"search.second_objective": "bytes_per_second", "search.scheduler.name": "none"}
    trials = [complete(0, second=5.0), complete(1, second=9.0)]
    save_study(tmp_path / "study.db", config.replace(two), trials)
    study = read_back(tmp_path / "study.db")
    assert study.metric_names == ["val_bits_per_byte", "bytes_per_second"]
    assert [trial.number for trial in study.best_trials] == [1]
    assert study.trials[1].values == [2.0, 9.0]
