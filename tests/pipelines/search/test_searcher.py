from concurrent.futures import Future

import pytest
from optuna.trial import TrialState

from pipelines.console.errors import PipelineError
from pipelines.search import searcher as searcher_module
from pipelines.search.resume import StoredSearch
from pipelines.search.searcher import Clock, StudySearcher
from pipelines.search.study import build_study
from pipelines.tracking.trials import TrialRun
from tests.pipelines.search.trials import complete, created, result, searcher_of


def test_the_study_is_told_how_each_trial_really_ended(searched):
    searcher, study = searcher_of(searched)
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


def test_the_token_budget_ends_the_search(searched):
    searcher, _ = searcher_of(searched, [complete(0, tokens=40)], **{"search.max_tokens": 100})
    assert searcher.suggest("a")["number"] == 1
    searcher.on_trial_result("a", result(1.0, 50, finished=False))
    assert searcher.suggest("b")["number"] == 2
    searcher.on_trial_complete("a", result(1.0, 60, finished=True))
    assert searcher.suggest("c") is None  # b may crash, and start again
    searcher.on_trial_complete("b", result(1.0, 60, finished=True))
    assert searcher.suggest("c") == "FINISHED"


def test_an_unfinished_trial_is_taken_up_whatever_the_token_budget(searched):
    stored = [complete(0, tokens=10), complete(1, state=None)]
    searcher, _ = searcher_of(searched, stored, **{"search.max_tokens": 10})
    assert searcher.suggest("a")["number"] == 1
    searcher.on_trial_complete("a", result(1.0, 60, finished=True))
    assert searcher.suggest("b") == "FINISHED"


def test_what_unfinished_trials_were_trained_with_counts_before_they_report(searched):
    stored = [complete(0, tokens=50), complete(1, state=None, tokens=30)]
    searcher, _ = searcher_of(searched, stored, **{"search.max_tokens": 80})
    assert searcher.suggest("a")["number"] == 1
    assert searcher.suggest("b") is None
    searcher.on_trial_complete("a", result(1.0, 60, finished=True))
    assert searcher.suggest("b") == "FINISHED"


def test_a_crashed_trial_is_handed_out_again_first_as_often_as_configured(searched):
    searcher, study = searcher_of(searched, **{"search.trials": 2, "failures.retries": 2})
    first = searcher.suggest("a")
    searcher.on_trial_result("a", result(3.0, 1, finished=False))
    for retry, (before, after) in enumerate((("a", "b"), ("b", "c")), 1):
        searcher.on_trial_complete(before, error=True)
        assert searcher.queued_retry(0) == retry
        assert searcher.suggest(after) == first
        assert searcher.queued_retry(0) == 0
    searcher.on_trial_result("c", result(3.0, 1, finished=False))  # replayed
    assert searcher.suggest("d")["number"] == 1
    assert searcher.suggest("e") is None
    searcher.on_trial_complete("c", error=True)
    assert searcher.queued_retry(0) == 0
    searcher.on_trial_complete("d", result(2.0, 4, finished=True))
    assert searcher.suggest("e") == "FINISHED"
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert study.trials[0].intermediate_values == {1: 3.0}


def test_a_trial_has_the_key_of_its_run_which_no_text_of_tune_shows(searched):
    """Tune makes a tag of a trial's configuration and has it in every result."""
    open_run = lambda *_: created("a secret")  # noqa: E731
    searcher, _ = searcher_of(searched, open_run=open_run, **{"failures.retries": 1})
    config = searcher.suggest("a")
    assert config["key"].get_secret_value() == "a secret"
    assert "a secret" not in str(config)
    searcher.on_trial_complete("a", error=True)
    assert searcher.suggest("b") == config


def test_a_trial_waits_for_its_run_and_others_do_not(searched):
    runs = [created(), Future()]
    searcher, _ = searcher_of(searched, open_run=lambda number, _: runs[number])
    assert searcher.suggest("a")["number"] == 0
    assert searcher.suggest("b") is None
    searcher.on_trial_result("a", result(3.0, 1, finished=False))
    runs[1].set_result(TrialRun("stored", None))
    assert searcher.suggest("b")["number"] == 1


def test_a_trial_whose_run_cannot_be_made_is_not_handed_out(searched):
    refused: Future[str] = Future()
    refused.set_exception(PipelineError("the store says no"))
    searcher, _ = searcher_of(searched, open_run=lambda *_: refused)
    with pytest.raises(PipelineError, match="says no"):
        searcher.suggest("a")


def test_the_trials_of_a_warm_started_search_have_numbers_of_its_own(searched):
    known = [complete(0), complete(1, state="pruned", objective=3.0, curve={1: 3.0})]
    own = [complete(0), complete(1, state=None)]
    opened = []
    searcher, _ = searcher_of(
        searched,
        own,
        warm_start=known,
        open_run=lambda number, _: opened.append(number) or created(),
    )
    assert [searcher.suggest(name)["number"] for name in "ab"] == [1, 2]
    assert opened == [1, 2]
    searcher.on_trial_complete("a", error=True)
    assert searcher.queued_retry(1) == 0


def test_points_to_try_first_wait_for_a_budget_and_unfinished_trials_do_not(searched):
    first = [{"train.learning_rate": rate} for rate in (1e-3, 2e-3, 3e-3)]
    searched = searched.replace({"search.try_first": first, "search.max_seconds": 10})
    task, stored = searched.search_task(), [complete(0, state=None)]
    searcher = StudySearcher(
        build_study(task, stored),
        task,
        open_run=lambda *_: created(),
        stored=StoredSearch(stored, []),
        clock=Clock(10.0),
    )
    assert searcher.suggest("a")["number"] == 0
    searcher.on_trial_complete("a", result(1.0, 60, finished=True))
    assert searcher.suggest("b") == "FINISHED"


def test_the_clock_of_a_budget_starts_with_the_first_trial(searched, monkeypatch):
    now = 0.0
    monkeypatch.setattr(searcher_module.time, "monotonic", lambda: now)
    searcher, _ = searcher_of(searched, **{"search.max_seconds": 10})
    now = 100.0  # Ray has started
    assert searcher.suggest("a")["number"] == 0
    now = 109.0
    assert searcher.suggest("b")["number"] == 1
    now = 110.0
    assert searcher.suggest("c") is None
