"""Trials in the tracking store, and the evaluations of a training run: the one reader of both.

Used by a search that resumes or grows, by search.warm_start, by the cost estimate and by the
reports.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from pipelines.compat.mlflow import FAILED, FINISHED, KILLED
from pipelines.console.errors import EditedError
from pipelines.console.text import quote_value
from pipelines.tracking.schema import (
    BATCH_TOKENS_PARAM,
    BEST_METRIC,
    BEST_TAG,
    CODE_TAG,
    INACTIVE_TAG,
    OLD_PARETO_TAG,
    PARAMETERS_TAG,
    PARETO_TAG,
    REASON_TAG,
    RESUMED,
    SECONDS_METRIC,
    STATE_TAG,
    TOKENS_METRIC,
    TRIAL_TAG,
    VAL_BITS_METRIC,
    VALUES_TAG,
)
from pipelines.tracking.store import Run, Store
from pipelines.training.config import with_present_names

STATUS_OF_STATE = {"complete": FINISHED, "pruned": KILLED, "failed": FAILED}
"""The states of a trial that ended, and MLflow's status of its run."""
DIVERGED = "diverged"
"""With which the reason of a trial that diverged begins."""


@dataclass(frozen=True)
class TrialRun:
    """The run of a trial that trains: the recorder opens it, the searcher waits for it."""

    run_id: str
    key: str | None = field(repr=False)
    """With which the trial's checkpoints are signed."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a training run."""

    step: int
    tokens: int
    """Bytes trained on."""
    bits_per_byte: float
    """On the validation split."""
    best: float
    """The smallest value of train.best_metric so far."""


@dataclass(frozen=True)
class StoredTrial:
    """A trial, read from its run in the tracking store."""

    number: int
    run_id: str
    values: dict[str, Any]
    """Values of its searched keys."""
    state: str | None = None
    """complete, pruned or failed; None while it has not ended."""
    objective: float | None = None
    """Its best value of train.best_metric; None without one, as if it failed."""
    second: float | None = None
    """The value of search.second_objective."""
    tokens: int = 0
    seconds: float = 0.0
    """Time of training."""
    evaluations: tuple[Evaluation, ...] = ()
    reason: str = ""
    """Why it failed."""
    status: str = ""
    """MLflow's: RUNNING, FINISHED, FAILED or KILLED."""
    milliseconds: tuple[int, int] = (0, 0)
    """Start and end, since 1970."""
    best: bool = False
    """Whether it is marked as the winner of its search."""
    pareto: bool = False
    """Whether it is marked as one of the Pareto front."""
    code: str = ""
    """Digest of the code that trains it; empty in an older store."""
    parameters: int | None = None
    """Number of its model's parameters; None in an older store."""
    params: Mapping[str, str] = field(default_factory=dict)
    """Its whole configuration, encoded. Empty if its process was killed before it stored them."""

    @property
    def diverged(self) -> bool:
        """Whether that is why it failed."""
        return self.state == "failed" and self.reason.startswith(DIVERGED)

    @property
    def curve(self) -> dict[int, float]:
        """Best objective so far by tokens, at each evaluation."""
        return {one.tokens: one.best for one in self.evaluations}


def read_trial(run: Run, metric: str) -> StoredTrial:
    """The trial that a run describes, without its evaluations.

    `metric` is the search's train.best_metric. Raises EditedError if its tags are not what was
    written.
    """
    try:
        return _trial_of(run, metric)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = f"run {run.info.run_id}: a tag was edited or removed: {error}"
        raise EditedError(message) from None


def _trial_of(run: Run, metric: str) -> StoredTrial:
    tags, metrics = run.data.tags, run.data.metrics
    state, objective = tags.get(STATE_TAG), metrics.get(BEST_METRIC.format(metric))
    if state not in {None, *STATUS_OF_STATE} or (state == "complete" and objective is None):
        raise ValueError(f"{STATE_TAG}={state}")
    return StoredTrial(
        number=int(tags[TRIAL_TAG]),
        run_id=run.info.run_id,
        values=with_present_names(json.loads(tags[VALUES_TAG])),
        state=state,
        objective=objective,
        tokens=int(metrics.get(TOKENS_METRIC, 0)),
        seconds=metrics.get(SECONDS_METRIC, 0.0),
        reason=tags.get(REASON_TAG, "").removeprefix(RESUMED),
        status=run.info.status,
        milliseconds=(run.info.start_time, run.info.end_time or run.info.start_time),
        best=tags.get(BEST_TAG) == "true",
        pareto="true" in (tags.get(PARETO_TAG), tags.get(OLD_PARETO_TAG)),
        code=tags.get(CODE_TAG, ""),
        parameters=int(tags[PARAMETERS_TAG]) if PARAMETERS_TAG in tags else None,
        params=configuration_of(run),
    )


def configuration_of(run: Run) -> dict[str, str]:
    """The parameters of a trial or a fit, those that did not apply with the values they had.

    Empty if its process was killed before it stored them. A trial of an older store has
    INACTIVE_PARAM where a parameter did not apply. Raises EditedError if the tag with the others is
    not what was written.
    """
    if not run.data.params:
        return {}
    text = run.data.tags.get(INACTIVE_TAG, "{}")
    try:
        return with_present_names({**run.data.params, **json.loads(text)})
    except (TypeError, ValueError):
        expected = f"expected values by key in JSON, got {quote_value(text)}"
        message = f"run {run.info.run_id}: tag {INACTIVE_TAG}: {expected}; set it again in MLflow"
        raise EditedError(message) from None


def read_evaluations(
    store: Store, run_id: str, params: Mapping[str, str], metric: str
) -> tuple[Evaluation, ...]:
    """The evaluations of a trial or a fit with these parameters; `metric` is as in read_trial.

    None without parameters: the process was killed before it stored them, or the run was read
    before it did.
    """
    evaluated = store.history(run_id, VAL_BITS_METRIC) if params else {}
    if not evaluated:
        return ()
    same = metric == VAL_BITS_METRIC
    objective = evaluated if same else store.history(run_id, metric)
    batch_tokens = int(params[BATCH_TOKENS_PARAM])
    best = accumulate((objective[step] for step in evaluated), min)
    return tuple(
        Evaluation(step, step * batch_tokens, value, so_far)
        for (step, value), so_far in zip(evaluated.items(), best, strict=True)
    )
