"""The Optuna side of the search: the space, the sampler, and a study rebuilt from stored trials."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from pipelines.config.yaml_text import flatten
from pipelines.console.errors import ConfigError
from pipelines.engine.stage import Context
from pipelines.search.config import SearchTask
from pipelines.storage.location import storage_folder
from pipelines.storage.remote import Folder
from pipelines.tracking.client import Run
from pipelines.tracking.encoding import encode_param
from pipelines.tracking.store import Store


@dataclass(frozen=True)
class StoredTrial:
    """A trial as the tracking store remembers it; `state` is None while it is unfinished."""

    number: int
    run_id: str
    values: dict[str, Any]
    state: str | None = None
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
    """When it started and ended, since 1970."""


def second_value(
    task: SearchTask, values: Mapping[str, Any], metrics: Mapping[str, float]
) -> float | None:
    """A trial's search.second_objective, from its last metrics; None if the search has none."""
    if task.search.second_objective == "parameters":
        return task.base.replace(values).model.parameter_count()
    if task.search.second_objective == "bytes_per_second" and metrics.get("seconds"):
        return metrics["tokens"] / metrics["seconds"]
    return None


TRIAL_KIND = "trial"


def stored_trials(
    context: Context[Any], task: SearchTask, search_run: str = ""
) -> list[StoredTrial]:
    """The trials of a search (default: the context's) as the tracking store has them, by number."""
    return trials_of(context.store, search_run or context.run_id, task)


def trials_of(store: Store, search_run: str, task: SearchTask) -> list[StoredTrial]:
    """The trials under a search's run, by number."""
    trials = [_stored(store, run, task) for run in store.children(search_run, TRIAL_KIND)]
    return sorted(trials, key=lambda trial: trial.number)


def _stored(store: Store, run: Run, task: SearchTask) -> StoredTrial:
    tags, metrics, metric = run.data.tags, run.data.metrics, task.base.train.best_metric
    values = json.loads(tags["dca.values"])
    state = tags.get("dca.state")
    return StoredTrial(
        number=int(tags["dca.trial"]),
        run_id=run.info.run_id,
        values=values,
        status=run.info.status,
        state=state,
        objective=metrics.get(f"best_{metric}"),
        second=second_value(task, values, metrics) if state == "complete" else None,
        tokens=int(metrics.get("tokens", 0)),
        curve=_curve(store, run, metric),
        reason=tags.get("dca.reason", ""),
        milliseconds=(run.info.start_time, run.info.end_time or run.info.start_time),
    )


def _curve(store: Store, run: Run, metric: str) -> dict[int, float]:
    evaluated = store.history(run.info.run_id, "val_bits_per_byte")
    if not evaluated:  # nor is it sure to have parameters, if a kill came right after it was made
        return {}
    same = metric == "val_bits_per_byte"
    history = evaluated if same else store.history(run.info.run_id, metric)
    batch_tokens = int(run.data.params["train.batch_tokens"])
    best = accumulate((history[step] for step in evaluated), min)
    return {batch_tokens * step: value for step, value in zip(evaluated, best, strict=True)}


def trials_folder(context: Context[Any]) -> Folder:
    """Where the trials' checkpoints lie."""
    return context.storage / "trials" / context.run_id


def comparable_params(task: SearchTask, fingerprint: str) -> dict[str, Any]:
    """What two searches must have in common for the results of one to teach the other."""
    fixed = {
        key: value
        for key, value in task.base.params.items()
        if key not in task.search.space and key.startswith(("model.", "train."))
    }
    search = task.search.model_dump(include={"space", "second_objective"})
    return {"corpus": fingerprint, **fixed, "search": search}


def earlier_trials(task: SearchTask, fingerprint: str, search_run: str = "") -> list[StoredTrial]:
    """Finished trials of the searches that search.warm_start names, `search_run` itself left out.

    Raises ConfigError if an experiment has none, or none that did the same.
    """
    found: list[StoredTrial] = []
    ours = {
        key: encode_param(value) for key, value in flatten(comparable_params(task, fingerprint))
    }
    for name in task.search.warm_start:
        where = f"search.warm_start: {name}"
        store = Store.open(name, storage_folder(task.storage), create=False)
        runs = store.find("search") if store else []
        runs = [run for run in runs if run.info.run_id != search_run]
        if store is None or not runs:
            raise ConfigError(f"{where}: no such experiment, or no search in it")
        differences = {run.info.run_id: _difference(run.data.params, ours) for run in runs}
        if all(differences.values()):
            raise ConfigError(
                f"{where}: expected a search of the same space and training, but "
                f"{differences[runs[0].info.run_id]}"
            )
        for run_id, difference in differences.items():
            trials = [] if difference else trials_of(store, run_id, task)
            found += [trial for trial in trials if trial.state in ("complete", "pruned")]
    return found


def _difference(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str | None:
    """The first parameter of a search that is not ours."""
    keys = {*ours, *(key for key in theirs if key.startswith("search.space."))}
    for key in sorted(keys):
        if theirs.get(key) != ours.get(key):
            return f"its {key} is {theirs.get(key, 'absent')}, here {ours.get(key, 'absent')}"
    return None
