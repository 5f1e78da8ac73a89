"""The early stopping of trials: Ray Tune's ASHA, or the median stopping of the Optuna study.

Both compare trials at equal tokens, to within a step, and include the evaluations of stored trials.
"""

from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from pipelines.compat.ray import trial_stub
from pipelines.search.config import SearchTask
from pipelines.tracking.schema import BATCH_TOKENS_PARAM
from pipelines.tracking.trials import StoredTrial
from pipelines.training.config import TrainConfig


def scheduler_of(
    task: SearchTask,
    stored: Sequence[StoredTrial],
    should_prune: Callable[[str, dict[str, Any]], bool],
) -> TrialScheduler:
    """The scheduler of a search.

    Args:
        task: The search.
        stored: Trials of its earlier sessions; their evaluations fill ASHA's rungs.
        should_prune: Whether the study's pruner would stop a trial: of Tune's id of the trial and
            its new result.

    """
    chosen, train = task.search.scheduler, task.base.train
    if chosen.name == "none":
        return FIFOScheduler()
    if chosen.name == "median":
        return _Median(should_prune)
    asha = _Asha(
        train,
        metric="objective",
        mode="min",
        time_attr="tokens",
        grace_period=task.grace_tokens,
        max_t=train.steps * train.batch_tokens + 1,  # a rung at the end would stop finished trials
        reduction_factor=chosen.reduction_factor,
        stop_last_trials=False,
    )
    for trial in stored:
        stub = trial_stub(trial.number, config={"number": trial.number, "values": trial.values})
        asha.on_trial_add(None, stub)
        asha.on_trial_result(None, stub, {"curve": trial.curve.items()})
    return asha


class _Median(FIFOScheduler):
    """Stops a trial where the study's pruner would: the study has the curves of stored trials."""

    def __init__(self, should_prune: Callable[[str, dict[str, Any]], bool]) -> None:
        super().__init__()
        self._should_prune = should_prune

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop the trial if it is worse than the median of the completed ones."""
        stop = self._should_prune(trial.trial_id, result)
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE


class _Asha(AsyncHyperBandScheduler):
    """ASHA with trials identified by their numbers, at every evaluation of a result.

    A retried trial has a new id in Tune and replays its history; identified by its number it is
    entered once on each rung.
    """

    def __init__(self, train: TrainConfig, **settings: Any) -> None:
        """ASHA over trials that train as `train` does, but for their values; settings: Ray's."""
        super().__init__(**settings)
        self._train = train

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Add a trial to a bracket."""
        super().on_trial_add(tune_controller, _by_number(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop the trial if it is too far behind on a rung that it has just reached."""
        batch = trial.config["values"].get(BATCH_TOKENS_PARAM, self._train.batch_tokens)
        actions = [
            super(_Asha, self).on_trial_result(
                tune_controller,
                _by_number(trial),
                {"tokens": _tokens_of_base(self._train, batch, tokens), "objective": objective},
            )
            for tokens, objective in result["curve"]
        ]
        return TrialScheduler.STOP if TrialScheduler.STOP in actions else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Remove the trial from its bracket, after its last evaluations."""
        if "curve" in result:
            self.on_trial_result(tune_controller, trial, result)
        self.on_trial_remove(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Remove the trial from its bracket; its values stay on the rungs."""
        super().on_trial_remove(tune_controller, _by_number(trial))


def _tokens_of_base(train: TrainConfig, batch_tokens: int, tokens: int) -> int:
    """Where the base is evaluated at the time at which a trial with another batch was, after so
    many tokens.

    In whole steps of its own it may be a few tokens short of a rung, and would be compared there
    with its next evaluation.
    """
    if batch_tokens == train.batch_tokens:
        return tokens
    steps = -(-train.tokens // batch_tokens)
    count = min(train.evals, steps)
    number = ((tokens // batch_tokens + 1) * count - 1) // steps
    same = number * len(train.eval_steps) // count
    return train.eval_steps[same - 1] * train.batch_tokens if same else 0


def _by_number(trial: Any) -> Any:
    return trial_stub(trial.config["number"])
