"""What pipelines.compat.ray relies on in Ray Tune is still what Tune does."""

import os
import signal
import threading
from typing import Any

import pytest
import ray
from ray import tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipelines.compat import ray as compat
from pipelines.console.errors import StorageError


class Proposals(compat.NotPickled, Searcher):
    """Two trials, of which one raises and one kills its process."""

    def __init__(self, events: list[tuple[str, str]]) -> None:
        super().__init__(metric="objective", mode="min")
        self._events, self._lock = events, threading.Lock()
        self._left = ["raise", "die"]

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        return {"number": self._left.pop(0)} if self._left else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self._events.append(("searcher", trial_id))

    def save(self, checkpoint_path: str) -> None: ...


class Errors(compat.NotPickled, tune.Callback):
    """The exception that ended each trial."""

    def __init__(self, events: list[tuple[str, str]]) -> None:
        self._events, self._lock = events, threading.Lock()
        self.found: dict[str, BaseException] = {}
        self.results: dict[str, Any] = {}

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._events.append(("callback", trial.trial_id))
        self.found[trial.config["number"]] = compat.trial_error(trial)
        self.results[trial.config["number"]] = trial.last_result


class Failing(tune.Trainable):
    """Reports once, and fails."""

    def setup(self, config: dict[str, Any]) -> None:
        self._what = config["number"]

    def step(self) -> dict[str, Any]:
        if self.iteration == 0:
            return {"objective": 1.0}
        if self._what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        raise StorageError("no room\nat all")


@pytest.fixture(scope="module")
def failed(
    connected: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Errors, list[tuple[str, str]]]:
    """A search whose trials have failed, and the order of its events."""
    events: list[tuple[str, str]] = []
    errors = Errors(events)
    tune.Tuner(
        Failing,
        tune_config=tune.TuneConfig(search_alg=Proposals(events), num_samples=-1),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path_factory.mktemp("tune")), callbacks=[errors], verbose=0
        ),
    ).fit()
    return errors, events


def test_the_exception_of_a_trial_is_found_as_it_was_raised(failed):
    error = failed[0].found["raise"]
    assert type(error) is StorageError
    assert str(error) == "no room\nat all"
    assert compat.exit_detail(error) == ""


def test_how_the_process_of_a_trial_died_is_found_in_the_text_of_the_error(failed):
    error = failed[0].found["die"]
    assert isinstance(error, ray.exceptions.RayActorError)
    assert "Worker" in compat.exit_detail(error)
    assert compat.exit_detail(error).endswith(".")


def test_a_trial_has_its_configuration_and_its_last_result(failed):
    assert failed[0].found.keys() == {"raise", "die"}
    assert {result["objective"] for result in failed[0].results.values()} == {1.0}


def test_the_searcher_is_told_of_an_error_before_the_callbacks(failed):
    """The callback asks the searcher whether a trial starts again."""
    kinds = [kind for kind, _ in failed[1]]
    assert kinds == ["searcher", "callback"] * 2


def test_what_went_wrong_in_tune_itself_is_an_error_with_its_text(tmp_path):
    class Trial:
        pickled_error_file = None
        error_file = str(tmp_path / "error.txt")

    (tmp_path / "error.txt").write_text("Failure # 1\nTuneError: no such trainable\n")
    assert compat.last_line(compat.trial_error(Trial())) == "TuneError: no such trainable"
    Trial.error_file = None
    assert str(compat.trial_error(Trial())) == "unknown error"


@pytest.mark.parametrize("bases", [(tune.Callback,), (compat.NotPickled, tune.Callback)])
def test_tune_pickles_the_callbacks_of_a_tuner(bases, tmp_path):
    class Holder(*bases):
        def __init__(self) -> None:
            self._lock = threading.Lock()

    def make() -> None:
        run_config = tune.RunConfig(storage_path=str(tmp_path), callbacks=[Holder()])
        tune.Tuner(Failing, run_config=run_config)

    if compat.NotPickled not in bases:
        with pytest.raises(TypeError, match="pickle"):
            make()
    else:
        make()


def sent() -> dict[str, str]:
    """What Tune sends to the actors of a trial."""
    made = class_cache._ActorClassCache().get(type("Actor", (), {}))
    return made._default_options["runtime_env"].get("env_vars", {})


@pytest.mark.parametrize("inherited", [True, False])
def test_aws_keys_are_not_sent_to_trials_and_tune_is_as_before_afterwards(monkeypatch, inherited):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")
    before = sent()
    assert before["AWS_SECRET_ACCESS_KEY"] == "secret"
    with pytest.raises(RuntimeError), compat.variables_for_trials(inherited=inherited):
        del before["AWS_SECRET_ACCESS_KEY"]
        assert sent() == ({} if inherited else before)
        raise RuntimeError
    assert sent() == before | {"AWS_SECRET_ACCESS_KEY": "secret"}


def test_asha_takes_a_stub_for_a_trial():
    asha = AsyncHyperBandScheduler(
        **{"time_attr": "tokens", "metric": "objective", "mode": "min", "grace_period": 1},
        **{"max_t": 100, "reduction_factor": 2, "stop_last_trials": False},
    )

    def report(number: int, tokens: int, objective: float) -> str:
        stub = compat.trial_stub(number)
        asha.on_trial_add(None, stub)
        action = asha.on_trial_result(None, stub, {"tokens": tokens, "objective": objective})
        asha.on_trial_remove(None, stub)
        return action

    assert report(0, 1, 1.0) == TrialScheduler.CONTINUE
    assert report(1, 1, 2.0) == TrialScheduler.STOP
    assert report(0, 1, 9.0) == TrialScheduler.CONTINUE  # it has a value on this rung
