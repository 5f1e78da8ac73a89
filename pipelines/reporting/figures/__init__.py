"""The figures of a report, each a function from results to a matplotlib Figure.

    figures.history(load_results("quickstart"))

Used by the page and the notebooks. They are narrow enough for a phone and readable in grey:
markers, line styles and labels distinguish what colour distinguishes. pyplot is not used.
"""

from pipelines.reporting.figures.mixing import mixing_weights
from pipelines.reporting.figures.search_space import importances, parallel, slices
from pipelines.reporting.figures.study import (
    forest,
    quality_and_time,
    rate_curves,
    study_curves,
)
from pipelines.reporting.figures.trials import (
    curves,
    history,
    leaderboard,
    pareto_front,
    pruning,
    seeds,
)

__all__ = [
    "curves",
    "forest",
    "history",
    "importances",
    "leaderboard",
    "mixing_weights",
    "parallel",
    "pareto_front",
    "pruning",
    "quality_and_time",
    "rate_curves",
    "seeds",
    "slices",
    "study_curves",
]
