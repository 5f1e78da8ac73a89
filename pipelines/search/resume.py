"""The trials of a search in the tracking store, from which a resumed search continues.

Also the trials of earlier searches that `search.warm_start` names.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from pipelines.compat.mlflow import FAILED, FINISHED, KILLED
from pipelines.config.yaml_text import flatten
from pipelines.console.errors import ConfigError, Problem
from pipelines.engine.stage import Context
from pipelines.search.config import SearchTask
from pipelines.storage.location import storage_folder
from pipelines.storage.remote import Folder
from pipelines.tracking.encoding import encode_param
from pipelines.tracking.schema import REASON_TAG, STATE_TAG, TRIAL_TAG, VALUES_TAG
from pipelines.tracking.store import Run, Store

TRIAL_KIND = "trial"
STATUS_OF_STATE = {"complete": FINISHED, "pruned": KILLED, "failed": FAILED}
"""The states of a trial that ended, and MLflow's status of its run."""


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
    second: float | None = None
    """The value of search.second_objective."""
    tokens: int = 0
    curve: dict[int, float] = field(default_factory=dict)
    """Best objective so far by tokens, at each evaluation."""
    reason: str = ""
    status: str = ""
    """MLflow's: RUNNING, FINISHED, FAILED or KILLED."""
    milliseconds: tuple[int, int] = (0, 0)
    """Start and end, since 1970."""


def second_value(
    task: SearchTask, values: Mapping[str, Any], metrics: Mapping[str, float]
) -> float | None:
    """The value of search.second_objective, from a trial's last metrics; None if there is none."""
    if task.search.second_objective == "parameters":
        return task.base.replace(values).model.parameter_count()
    if task.search.second_objective == "bytes_per_second" and metrics.get("seconds"):
        return metrics["tokens"] / metrics["seconds"]
    return None


def trials_of(store: Store, search_run: str, task: SearchTask) -> list[StoredTrial]:
    """The trials under a search's run, by number."""
    trials = [_read_trial(store, run, task) for run in store.children(search_run, TRIAL_KIND)]
    return sorted(trials, key=lambda trial: trial.number)


def _read_trial(store: Store, run: Run, task: SearchTask) -> StoredTrial:
    """The trial that a run describes."""
    tags, metrics, metric = run.data.tags, run.data.metrics, task.base.train.best_metric
    values = json.loads(tags[VALUES_TAG])
    state = tags.get(STATE_TAG)
    return StoredTrial(
        number=int(tags[TRIAL_TAG]),
        run_id=run.info.run_id,
        values=values,
        status=run.info.status,
        state=state,
        objective=metrics.get(f"best_{metric}"),
        second=second_value(task, values, metrics) if state == "complete" else None,
        tokens=int(metrics.get("tokens", 0)),
        curve=_best_so_far(store, run, metric),
        reason=tags.get(REASON_TAG, ""),
        milliseconds=(run.info.start_time, run.info.end_time or run.info.start_time),
    )


def _best_so_far(store: Store, run: Run, metric: str) -> dict[int, float]:
    """The best value of a metric at each evaluation of a trial's run, by the tokens trained on."""
    evaluated = store.history(run.info.run_id, "val_bits_per_byte")
    if not evaluated:  # the process may have been killed before it stored the parameters
        return {}
    same = metric == "val_bits_per_byte"
    history = evaluated if same else store.history(run.info.run_id, metric)
    batch_tokens = int(run.data.params["train.batch_tokens"])
    best = accumulate((history[step] for step in evaluated), min)
    return {batch_tokens * step: value for step, value in zip(evaluated, best, strict=True)}


def trials_folder(context: Context[Any]) -> Folder:
    """Folder of the checkpoints of a search's trials."""
    return context.storage / "trials" / context.run_id


def comparable_params(task: SearchTask, fingerprint: str) -> dict[str, Any]:
    """Parameters in which two searches must agree for one to warm-start from the other."""
    fixed = {
        key: value
        for key, value in task.base.params.items()
        if key not in task.search.space and key.startswith(("model.", "train."))
    }
    search = task.search.model_dump(include={"space", "second_objective"})
    return {"corpus": fingerprint, **fixed, "search": search}


def earlier_trials(task: SearchTask, fingerprint: str, search_run: str = "") -> list[StoredTrial]:
    """The complete and pruned trials of the searches that search.warm_start names.

    A search's own run, `search_run`, is left out. Raises ConfigError if one of the experiments has
    no search, or none of the same space and training.
    """
    ours = {
        key: encode_param(value) for key, value in flatten(comparable_params(task, fingerprint))
    }
    found: list[StoredTrial] = []
    for name in task.search.warm_start:
        store = Store.open(name, storage_folder(task.storage), create=False)
        runs = store.find("search") if store else []
        runs = [run for run in runs if run.info.run_id != search_run]
        if store is None or not runs:
            raise _warm_start_error(name, "no such experiment, or no search in it")
        differences = [_difference(run.data.params, ours) for run in runs]
        if all(differences):
            expected = "expected a search of the same space and training"
            raise _warm_start_error(name, f"{expected}, but {differences[0]}")
        for run, difference in zip(runs, differences, strict=True):
            trials = [] if difference else trials_of(store, run.info.run_id, task)
            found += [trial for trial in trials if trial.state in ("complete", "pruned")]
    return found


def _warm_start_error(name: str, message: str) -> ConfigError:
    return ConfigError(Problem(f"{name}: {message}", "search.warm_start"))


def _difference(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str | None:
    """How the parameters of another search differ from ours, by the first that does; else None."""
    keys = {*ours, *(key for key in theirs if key.startswith("search.space."))}
    for key in sorted(keys):
        if theirs.get(key) != ours.get(key):
            return f"its {key} is {theirs.get(key, 'absent')}, here {ours.get(key, 'absent')}"
    return None
