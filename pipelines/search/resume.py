"""The trials of a search in the tracking store: those from which it continues, and of others.

A search may grow: with more trials, another range or a further searched key it continues with those
of its stored trials that lie in its present space. `search.warm_start` names other experiments,
from whose trials its sampler learns.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from dca import registry
from pipelines.compat.mlflow import PARENT_RUN_TAG
from pipelines.console.errors import ConfigError, Problem
from pipelines.engine.code import CodeDigests
from pipelines.engine.stage import Context
from pipelines.search.config import Dimension, SearchTask
from pipelines.search.space import TRAINING_KEYS, Space, read_keys
from pipelines.storage.remote import Folder
from pipelines.tracking.encoding import encode_param
from pipelines.tracking.schema import (
    BASIS_TAG,
    CORPUS_PARAM,
    INACTIVE_PARAM,
    INSTANCE_TAG,
    KEY_TAG,
    OUTPUTS_TAG,
    REASON_TAG,
    RESUMED,
    SEARCH_KIND,
    SECONDS_METRIC,
    STATE_TAG,
    TOKENS_METRIC,
    TRIAL_KIND,
    TRIAL_TAG,
)
from pipelines.tracking.store import Store
from pipelines.tracking.trials import StoredTrial, read_evaluations, read_trial
from pipelines.training.config import TrainingRun

READING = "reading the trials"
"""What is shown while they are read: one or two requests each."""
DEFAULTS = {key: encode_param(value) for key, value in TrainingRun().params.items()}
"""Encoded values of keys that a stored trial lacks: it is older than they are."""
OUTSIDE = object()
"""Value of a searched key that lies outside its range: equal to no value of a condition."""


@dataclass(frozen=True)
class StoredSearch:
    """The trials of a search's run, by number, as a search of the present space sees them."""

    trials: list[StoredTrial]
    """Those that lie in the space; their values are those of the keys that are searched now."""
    outside: list[StoredTrial]

    @property
    def ended(self) -> list[StoredTrial]:
        """The trials in the space that are complete, pruned or failed."""
        return [trial for trial in self.trials if trial.state is not None]

    @property
    def unfinished(self) -> list[StoredTrial]:
        """The trials that have begun and not ended, in the space or not."""
        return [trial for trial in (*self.trials, *self.outside) if trial.state is None]

    @property
    def tokens(self) -> int:
        """Training tokens of all trials that have ended, in the space or not."""
        every = (*self.trials, *self.outside)
        return sum(trial.tokens for trial in every if trial.state is not None)

    @property
    def failed(self) -> list[StoredTrial]:
        """The trials in the space that have failed."""
        return [trial for trial in self.trials if trial.state == "failed"]

    @property
    def numbers(self) -> set[int]:
        """The numbers that are taken."""
        return {trial.number for trial in (*self.trials, *self.outside)}

    def missing(self, trial_count: int) -> int:
        """How many of so many trials have not ended."""
        return max(0, trial_count - len(self.ended))


def second_value(
    task: SearchTask,
    values: Mapping[str, Any],
    metrics: Mapping[str, float],
    parameters: int | None = None,
) -> float | None:
    """The value of search.second_objective, from a trial's last metrics, and from the number of its
    model's parameters if that is known; None if there is none."""
    if task.search.second_objective == "parameters":
        return parameters or task.base.replace(values).model.parameter_count()
    if task.search.second_objective == "bytes_per_second" and metrics.get(SECONDS_METRIC):
        return metrics[TOKENS_METRIC] / metrics[SECONDS_METRIC]
    return None


def stored_search(
    store: Store,
    search_run: str,
    task: SearchTask,
    *,
    evaluations: bool = True,
    any_code: bool = False,
) -> StoredSearch:
    """The trials under a search's run.

    Args:
        store: The experiment's store.
        search_run: The run.
        task: The search as it is configured now.
        evaluations: Whether the trials in the space are read with their evaluations.
        any_code: Whether those that other code has trained count as lying in the space.

    """
    metric, code, locate = task.base.train.best_metric, CodeDigests(), _locator(task)
    trials = [read_trial(run, metric) for run in store.children(search_run, TRIAL_KIND)]
    inside, outside = [], []
    for trial in sorted(trials, key=lambda trial: trial.number):
        values, difference = locate(trial)
        if difference or not (any_code or trial.code in ("", code[task.modules(values)])):
            outside.append(trial)
            continue
        metrics = {TOKENS_METRIC: trial.tokens, SECONDS_METRIC: trial.seconds}
        given = task, values, metrics, trial.parameters
        second = second_value(*given) if trial.state == "complete" else None
        trial = replace(trial, values=values, second=second)
        if evaluations:
            curve = read_evaluations(store, trial.run_id, trial.params, metric)
            trial = replace(trial, evaluations=curve)
        inside.append(trial)
    return StoredSearch(inside, outside)


def _locator(task: SearchTask) -> Callable[[StoredTrial], tuple[dict[str, Any], str]]:
    """A function that finds where trials lie in the task's space.

    It returns a trial's values of the keys that are searched now, and how it differs from the
    space: by the first key that does not fit; empty if the trial is a point. Options of other
    residual kinds and schedules than its own make no difference.
    """
    space = Space(task)
    present = {key: encode_param(value) for key, value in task.base.params.items()}

    def locate(trial: StoredTrial) -> tuple[dict[str, Any], str]:
        own = {key: encode_param(value) for key, value in trial.values.items()}
        params = {**DEFAULTS, **(trial.params or present | own)}
        values = space.point(lambda key, dimension: _decode(dimension, params[key]))
        kind, schedule = params["model.residual"], params["train.schedule"]
        known = kind in registry.residual.names
        read = set(read_keys(TRAINING_KEYS, kind, schedule) if known else TRAINING_KEYS)
        for key in TRAINING_KEYS:
            stored = params[key]
            if key in values:
                if values[key] is OUTSIDE:
                    return values, f"its {key} is {stored}"
            elif key in read and stored != INACTIVE_PARAM and not _same(stored, present[key]):
                return values, f"its {key} is {stored}, here {present[key]}"
        return values, ""

    return locate


def _decode(dimension: Dimension, text: str) -> Any:
    """The value of a range that is stored as this text; OUTSIDE if there is none."""
    if dimension.choice is not None:
        return next((one for one in dimension.choice if _same(encode_param(one), text)), OUTSIDE)
    number = _number(text)
    return number if number is not None and dimension.contains(number) else OUTSIDE


def _same(one: str, other: str) -> bool:
    """Whether two encoded values are equal, as 1 and 1.0 are."""
    return one == other or (_number(one) is not None and _number(one) == _number(other))


def _number(text: str) -> int | float | None:
    """The number in a stored text; None if it is another value."""
    with suppress(ValueError):
        value = json.loads(text)
        return value if type(value) in (int, float) else None
    return None


def joining(store: Store, search_run: str, task: SearchTask) -> list[StoredTrial]:
    """The complete and pruned trials in the space that other searches have, of runs with the same
    basis. Failed ones stay: their checkpoints are in the folder of their search.

    There are two such searches if their spaces had no trial in common. An instance's search neither
    takes trials of others nor gives its own: each goes on by itself.
    """
    return [trial for trials in _joining(store, search_run, task).values() for trial in trials]


def _joining(store: Store, search_run: str, task: SearchTask) -> dict[str, list[StoredTrial]]:
    """The same by the run of the search that has them now."""
    tags = store.client.get_run(search_run).data.tags
    if BASIS_TAG not in tags or INSTANCE_TAG in tags:
        return {}
    found = {}
    for run in reversed(store.find(SEARCH_KIND, basis=tags[BASIS_TAG])):
        other = run.info.run_id
        if other != search_run and INSTANCE_TAG not in run.data.tags:
            ended = stored_search(store, other, task, evaluations=False).ended
            found[other] = [trial for trial in ended if trial.state != "failed"]
    return found


def join(store: Store, search_run: str, task: SearchTask) -> int:
    """Move the trials that `joining` finds into a search; returns how many.

    Each keeps its run, and has a free number in its new search. A search that loses trials is
    unfinished again: run once more it is joined by those that lie in its space.
    """
    losing = {other: found for other, found in _joining(store, search_run, task).items() if found}
    for other in losing:
        store.untag(other, OUTPUTS_TAG)  # before one is moved: the process may be killed meanwhile
    trials = [trial for found in losing.values() for trial in found]
    taken = stored_search(store, search_run, task, evaluations=False).numbers if trials else set()
    numbers = (number for number in count() if number not in taken)
    for trial, number in zip(trials, numbers, strict=False):
        key = f"{search_run}/{number}"
        place = {PARENT_RUN_TAG: search_run, TRIAL_TAG: str(number), KEY_TAG: key}
        store.tag(trial.run_id, place)
        store.client.update_run(trial.run_id, name=f"{task.experiment} trial {number}")
    return len(trials)


def reopen(store: Store, trial: StoredTrial) -> None:
    """Make a failed trial one that has not ended, so that the search runs it again."""
    store.tag(trial.run_id, {REASON_TAG: RESUMED})
    store.untag(trial.run_id, STATE_TAG)


def trials_folder(context: Context[Any]) -> Folder:
    """Folder of the checkpoints of a search's trials."""
    return context.storage / "trials" / context.run_id


def trial_folder_name(number: int) -> str:
    """Name in it of the folder of a trial, the same each time the trial starts."""
    return f"trial-{number:04d}"


def earlier_trials(task: SearchTask, fingerprint: str, search_run: str = "") -> list[StoredTrial]:
    """The complete and pruned trials in the space of the experiments that search.warm_start names.

    Those of a search of another corpus, and of the search's own run, `search_run`, are left out; so
    are pruned ones if there are two objectives, of which they have one.
    Raises ConfigError if an experiment has no search, or none with a trial in the space.
    """
    found: list[StoredTrial] = []
    for name in task.search.warm_start:
        store = Store.open(name, None, create=False)
        searches = store.find(SEARCH_KIND) if store else []
        if store is None or not searches:
            raise _warm_start_error(name, "no such experiment, or no search in it")
        same = [run for run in searches if run.data.params.get(CORPUS_PARAM) == fingerprint]
        if not same:
            other = searches[0].data.params.get(CORPUS_PARAM)
            raise _warm_start_error(name, f"its corpus is {other}, here {fingerprint}")
        ids = [run.info.run_id for run in same if run.info.run_id != search_run]
        stored = [stored_search(store, run_id, task, any_code=True) for run_id in ids]
        if ids and not any(one.trials for one in stored):
            outside = [trial for one in stored for trial in one.outside]
            message = f"none of its trials, of which there are {len(outside)}, lies in the space"
            reasons = [f", as {_locator(task)(trial)[1]}" for trial in outside[:1]]
            raise _warm_start_error(name, "".join([message, *reasons]))
        states = ["complete"] if task.search.second_objective else ["complete", "pruned"]
        found += [trial for one in stored for trial in one.trials if trial.state in states]
    return found


def _warm_start_error(name: str, message: str) -> ConfigError:
    return ConfigError(Problem(f"{name}: {message}", "search.warm_start"))
