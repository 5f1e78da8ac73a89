"""The best trial of a search, and its Pareto front. Pruned trials are compared at equal tokens.

Used by the recorder and the stage select.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pipelines.console.errors import PipelineError
from pipelines.tracking.trials import StoredTrial


def best_trial(trials: Sequence[StoredTrial]) -> StoredTrial:
    """The trial with the smallest objective among the complete ones.

    A pruned trial never ranks before a complete one. If none is complete, the pruned ones are
    compared at the most training tokens that two of them reached. If none has an objective, it is
    the one that diverged last. Raises PipelineError if none diverged either.
    """
    ranked = [t for t in trials if t.objective is not None and t.state == "complete"]
    if not ranked:
        pruned = [t for t in trials if t.objective is not None and t.state == "pruned"]
        ranked = _at_most_shared_tokens(pruned)
    if ranked:
        return min(ranked, key=lambda trial: (trial.objective, trial.number))
    if diverged := [trial for trial in trials if trial.diverged]:
        return min(diverged, key=lambda trial: (-trial.tokens, trial.number))
    raise PipelineError("search: no trial has a result; --fresh searches again")


def pareto_front(trials: Sequence[StoredTrial], second: str | None) -> list[StoredTrial]:
    """The Pareto front of the complete trials, the best in bits per byte first.

    No other trial is at least as good in both objectives and better in one.
    """
    sign = -1 if second == "bytes_per_second" else 1
    points = [
        (trial.objective, sign * trial.second, trial.number, trial)
        for trial in trials
        if trial.state == "complete" and trial.objective is not None and trial.second is not None
    ]
    front: list[StoredTrial] = []
    smallest = math.inf
    for _, value, _, trial in sorted(points):
        if value < smallest:
            smallest = value
            front.append(trial)
    return front


def _at_most_shared_tokens(pruned: Sequence[StoredTrial]) -> list[StoredTrial]:
    """The trials that reached the most tokens that two reached, with their objective there."""
    reached = Counter(tokens for trial in pruned for tokens in trial.curve)
    shared = [tokens for tokens, count in reached.items() if count > 1]
    if not shared:
        longest = max((trial.tokens for trial in pruned), default=0)
        return [trial for trial in pruned if trial.tokens == longest]
    rung = max(shared)
    return [replace(trial, objective=trial.curve[rung]) for trial in pruned if rung in trial.curve]
