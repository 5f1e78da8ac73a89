"""search: Ray Tune runs the trials that Optuna proposes, MLflow records them.

The tracking store is the truth. A trial's run is made, with its parameters, before the trial
starts; a search that was killed is rebuilt from these runs and goes on with what is missing.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from pipelines.search.config import SearchTask
from pipelines.search.resume import StoredTrial
from pipelines.search.study import grace_tokens


def scheduler_of(
    task: SearchTask,
    stored: Sequence[StoredTrial],
    should_prune: Callable[[str, dict[str, Any]], bool],
) -> TrialScheduler:
    """Stops trials; its rungs know what earlier starts of the search have reached."""
    chosen, train = task.search.scheduler, task.base.train
    if chosen.name == "none":
        return FIFOScheduler()
    if chosen.name == "median":
        return _Median(should_prune)
    asha = _Asha(
        metric="objective",
        mode="min",
        time_attr="tokens",
        grace_period=grace_tokens(task),
        max_t=train.steps * train.batch_tokens + 1,  # a rung at the end would stop finished trials
        reduction_factor=chosen.reduction_factor,
        stop_last_trials=False,
    )
    for trial in stored:
        known = SimpleNamespace(config={"number": trial.number})
        asha.on_trial_add(None, known)
        asha.on_trial_result(None, known, {"curve": trial.curve.items()})
    return asha


class _Median(FIFOScheduler):
    """Asks the study, which has every trial's curve, also after a resume."""

    def __init__(self, should_prune: Callable[[str, dict[str, Any]], bool]) -> None:
        super().__init__()
        self._should_prune = should_prune

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop it if it is worse than the median of those that completed."""
        stop = self._should_prune(trial.trial_id, result)
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE


class _Asha(AsyncHyperBandScheduler):
    """Knows a trial by its number, and its whole curve: one that starts again, and replays what it
    had reached, stands on each rung once, with its value there."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Admit a trial."""
        super().on_trial_add(tune_controller, _numbered(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop it if it is too far behind on a rung that it has just reached."""
        actions = [
            super(_Asha, self).on_trial_result(
                tune_controller, _numbered(trial), {"tokens": tokens, "objective": objective}
            )
            for tokens, objective in result["curve"]
        ]
        return TrialScheduler.STOP if TrialScheduler.STOP in actions else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Let it go, with what it has reached last."""
        if "curve" in result:
            self.on_trial_result(tune_controller, trial, result)
        self.on_trial_remove(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Let it go."""
        super().on_trial_remove(tune_controller, _numbered(trial))


def _numbered(trial: Any) -> SimpleNamespace:
    return SimpleNamespace(trial_id=trial.config["number"])
