"""Searches without Ray or MLflow: a searcher for an experiment, and trials that it reads."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import optuna

from pipelines.experiment import Experiment
from pipelines.search.resume import StoredSearch
from pipelines.search.searcher import StudySearcher
from pipelines.search.study import build_study
from pipelines.tracking.trials import Evaluation, StoredTrial, TrialRun

SPACE = {
    "model.dca.last_k": {"choice": [1, 2], "when": {"model.residual": "dca"}},
    "model.residual": {"choice": ["standard", "dca"]},
    "train.learning_rate": {"log_uniform": [1e-4, 1e-2]},
}
PLAIN = {
    "model.depth": {"int": [1, 4]},
    "train.learning_rate": {"log_uniform": [1e-4, 1e-2]},
}
"""A space that every sampler but the grid supports."""
SAMPLERS = ["tpe", "gp", "cmaes", "qmc", "random"]


def plain(experiment: Experiment) -> Experiment:
    return experiment.replace({"search.space": PLAIN})


def searcher_of(
    experiment: Experiment,
    stored: Sequence[StoredTrial] | StoredSearch = (),
    warm_start: Sequence[StoredTrial] = (),
    open_run: Callable[[int, dict[str, Any]], Future[TrialRun]] | None = None,
    left_out: Callable[[Mapping[str, Any], str], None] = lambda values, problem: None,
    **changes: Any,
) -> tuple[StudySearcher, optuna.Study]:
    """The searcher of a search with stored trials, and its study."""
    task = experiment.replace(changes).search_task()
    search = stored if isinstance(stored, StoredSearch) else StoredSearch(list(stored), [])
    study = build_study(task, search.trials, list(warm_start))
    open_run = open_run or (lambda *_: created())
    given = {"open_run": open_run, "stored": search, "left_out": left_out}
    searcher = StudySearcher(study, task, **given)
    return searcher, study


def created(key: str | None = None) -> Future[TrialRun]:
    """A run that is stored."""
    future: Future[TrialRun] = Future()
    future.set_result(TrialRun("run", key))
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


def complete(number: int, *, curve: Mapping[int, float] | None = None, **changes) -> StoredTrial:
    values = {"model.residual": "standard", "train.learning_rate": 1e-3}
    stored = {"state": "complete", "objective": 2.0, "values": values, **changes}
    return StoredTrial(number, str(number), evaluations=evaluations(curve or {}), **stored)


def evaluations(curve: Mapping[int, float]) -> tuple[Evaluation, ...]:
    """Evaluations with the best objective so far by tokens."""
    return tuple(Evaluation(tokens, tokens, best, best) for tokens, best in curve.items())


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
