"""select: the best trial of the search, among equals."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pipelines.console.errors import PipelineError
from pipelines.search.resume import StoredTrial


def best_trial(trials: Sequence[StoredTrial]) -> StoredTrial:
    """The smallest objective among trials of the same depth.

    Those that used their whole budget rank; a pruned one never outranks them. If none did, those
    that reached the deepest rung that several reached rank among themselves. Raises PipelineError
    if no trial has a number.
    """
    ranked = [t for t in trials if t.objective is not None and t.state == "complete"]
    if not ranked:
        pruned = [t for t in trials if t.objective is not None and t.state == "pruned"]
        ranked = _deepest(pruned)
    if not ranked:
        raise PipelineError("select: no trial has a result")
    return min(ranked, key=lambda trial: (trial.objective, trial.number))


def pareto_front(trials: Sequence[StoredTrial], second: str | None) -> list[StoredTrial]:
    """Complete trials that none beats in both objectives, best in bits per byte first."""
    sign = -1 if second == "bytes_per_second" else 1
    points = [
        (trial.objective, sign * trial.second, trial.number, trial)
        for trial in trials
        if trial.state == "complete" and trial.objective is not None and trial.second is not None
    ]
    front: list[StoredTrial] = []
    least = math.inf
    for _, value, _, trial in sorted(points):
        if value < least:
            least = value
            front.append(trial)
    return front


def _deepest(pruned: Sequence[StoredTrial]) -> list[StoredTrial]:
    """Trials at the largest budget in tokens that two reached, judged by their value there."""
    reached = Counter(tokens for trial in pruned for tokens in trial.curve)
    shared = [tokens for tokens, count in reached.items() if count > 1]
    if not shared:
        deepest = max((trial.tokens for trial in pruned), default=0)
        return [trial for trial in pruned if trial.tokens == deepest]
    rung = max(shared)
    return [replace(trial, objective=trial.curve[rung]) for trial in pruned if rung in trial.curve]
