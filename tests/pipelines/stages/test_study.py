from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState

from pipelines.runtime.config import Config
from pipelines.runtime.errors import ConfigError, PipelineError
from pipelines.stages.search import _scheduler
from pipelines.stages.study import Space, StoredTrial, StudySearcher, build_study

SPACE = {
    "model.last_k": {"choice": [1, 2], "when": {"model.residual": "dca"}},
    "model.residual": {"choice": ["standard", "dca"]},
    "train.learning_rate": {"log_uniform": [1e-4, 1e-2]},
}


@pytest.fixture
def config(config: Config) -> Config:
    return config.replace({"search": {"space": SPACE, "trials": 8}})


def searcher_of(config: Config, stored=(), open_run=None, **changes):
    space = Space(config)
    study = build_study(config.search, space, config.seed, list(stored))
    settings = {"trials": 100, "retries": 0, "open_run": open_run or (lambda *_: made()), **changes}
    return StudySearcher(study, space, **settings), study


def made() -> Future[str]:
    """A run that is stored."""
    future: Future[str] = Future()
    future.set_result("run")
    return future


def result(objective: float, tokens: int, *, finished: bool) -> dict:
    curve = [(tokens, objective)]
    return {"objective": objective, "tokens": tokens, "curve": curve, "finished": finished}


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


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_seed_repeats_the_suggestions(config, sampler):
    config = config.replace({"search.sampler.name": sampler})

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
    searcher, _ = searcher_of(config, max_tokens=100, spent=40)
    assert searcher.suggest("a")["number"] == 0
    searcher.on_trial_result("a", result(1.0, 50, finished=False))
    assert searcher.suggest("b")["number"] == 1
    searcher.on_trial_complete("a", result(1.0, 60, finished=True))
    assert searcher.suggest("c") is None  # b may crash, and start again
    searcher.on_trial_complete("b", result(1.0, 60, finished=True))
    assert searcher.suggest("c") == "FINISHED"


def test_an_unfinished_trial_is_taken_up_whatever_the_token_budget(config):
    searcher, _ = searcher_of(config, [complete(0, state=None)], max_tokens=10, spent=10)
    assert searcher.suggest("a")["number"] == 0
    searcher.on_trial_complete("a", result(1.0, 60, finished=True))
    assert searcher.suggest("b") == "FINISHED"


def test_a_crashed_trial_is_handed_out_again_first_as_often_as_configured(config):
    searcher, study = searcher_of(config, trials=2, retries=2)
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


def stops(asha, number: int, *curve: tuple[int, float]) -> bool:
    trial = SimpleNamespace(config={"number": number})
    asha.on_trial_add(None, trial)
    return asha.on_trial_result(None, trial, {"curve": curve}) == "STOP"


def test_a_resumed_search_stops_trials_by_what_it_had_reached_before(config):
    rung = config.train.eval_steps[1] * config.train.batch_tokens
    known = [complete(n, state="pruned", curve={rung: 2.0 + n / 10}) for n in range(3)]
    assert not stops(_scheduler(config, []), 9, (rung, 3.0))
    assert stops(_scheduler(config, known), 9, (rung, 3.0))
    assert not stops(_scheduler(config, known), 9, (rung, 1.0))


def test_a_trial_that_starts_again_stands_on_a_rung_once_with_its_value_there(config):
    rung = config.train.eval_steps[1] * config.train.batch_tokens
    asha = _scheduler(config, [])
    assert not stops(asha, 0, (rung, 3.0))
    assert stops(asha, 1, (rung, 3.5))
    assert not stops(asha, 2, (rung, 2.0))
    assert not stops(asha, 0, (rung, 3.0), (2 * rung, 1.0))
    assert asha._brackets[0]._rungs[-1][1] == {0: -3.0, 1: -3.5, 2: -2.0}
    known = [complete(0, state=None, curve={rung: 3.0}), complete(1, curve={rung: 2.0})]
    assert not stops(_scheduler(config, known), 0, (rung, 3.0))
