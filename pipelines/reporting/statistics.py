"""Ranking of the trials, intervals over seeds, and what early stopping saved.

Used by the summary, the figures and the page.
"""

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipelines.console.errors import ConfigError
from pipelines.reporting.results import INACTIVE, Results
from pipelines.tracking.schema import BATCH_TOKENS_PARAM

CONFIDENCE = 0.95
"""Level of the intervals over seeds."""
STATE_ORDER = {"complete": 0, "pruned": 1, "unfinished": 2, "failed": 3}


def at_equal_tokens(results: Results, *numbers: int) -> tuple[int, pd.Series]:
    """The largest budget in tokens that all these trials reached, and their best values there.

    Without numbers: all complete and pruned trials. Early stopping leaves trials at unequal depth,
    and this is the only budget at which all can be compared. 0 and no values without trials.
    """
    ended = results.trials.index[results.trials["state"].isin(["complete", "pruned"])]
    curves = results.curves[results.curves["number"].isin(numbers or ended)]
    if curves.empty:
        return 0, pd.Series(dtype=float)
    tokens = int(curves.groupby("number")["tokens"].max().min())
    reached = curves[curves["tokens"] <= tokens]
    return tokens, reached.groupby("number")["best"].min()


def ranking(results: Results) -> pd.DataFrame:
    """The trials, best first: the winner, complete trials, then pruned ones, deepest first.

    With the columns n, mean, low and high of `seed_statistics` for each trial's configuration.
    """
    trials = results.trials
    table = trials.assign(
        _winner=trials.index != results.winner,
        _order=trials["state"].map(STATE_ORDER),
        _depth=np.where(trials["state"] == "complete", 0, -trials["tokens"]),
        _number=trials.index,
    )
    by = ["_winner", "_order", "_depth", "bits_per_byte", "_number"]
    table = table.sort_values(by).drop(columns=[name for name in by if name.startswith("_")])
    return table.join(seed_statistics(results), on="configuration")


def seed_statistics(results: Results) -> pd.DataFrame:
    """By configuration: n seeds, their mean, and from two seeds on the t-interval of the mean."""
    groups = results.completed_runs.groupby("configuration", sort=False)["bits_per_byte"]
    rows = {name: _interval(values.to_numpy()) for name, values in groups}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["n", "mean", "low", "high"])
    return table.astype({"n": "Int64"})


def _interval(values: np.ndarray) -> tuple[int, float, float, float]:
    n, mean = len(values), float(values.mean())
    if n < 2:
        return n, mean, math.nan, math.nan
    from scipy import stats  # takes a second, which one seed does not need

    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return n, mean, mean - half, mean + half


@dataclass(frozen=True)
class PruningSavings:
    """Training that was not done because trials were stopped early."""

    trials: int
    """Number of pruned trials."""
    tokens: int
    """Rest of their budgets."""
    seconds: float
    """Training time of that rest, summed over the trials, each at its own pace."""
    share: float
    """Of the tokens of all complete and pruned trials, had each used its whole budget."""


def pruning_savings(results: Results) -> PruningSavings:
    """What stopping trials early saved."""
    trials = results.trials
    pruned = trials[trials["state"] == "pruned"]
    ended = trials[trials["state"].isin(["complete", "pruned"])]
    left = (trial_budgets(results)[pruned.index] - pruned["tokens"]).clip(lower=0)
    pace = (pruned["seconds"] / pruned["tokens"]).where(pruned["tokens"] > 0, 0.0)
    spent = int(ended["tokens"].sum())
    tokens = int(left.sum())
    share = tokens / (tokens + spent) if tokens else 0.0
    return PruningSavings(len(pruned), tokens, float((left * pace).sum()), share)


def trial_budgets(results: Results) -> pd.Series:
    """The tokens of each trial's whole training: full steps of its own batch size."""
    train = results.config.train
    sizes = results.trials.get(BATCH_TOKENS_PARAM, train.batch_tokens)
    batch = pd.Series(sizes, index=results.trials.index).replace(INACTIVE, train.batch_tokens)
    return (-(-train.tokens // batch.astype(int)) * batch).astype(int)


@dataclass(frozen=True)
class TopTwo:
    """The winner compared with the runner-up."""

    winner: int
    second: int
    """Number of the runner-up's trial."""
    tokens: int
    """Budget at which their trials are compared."""
    gap: float
    """Bits per byte by which the winner is better, with one seed each."""
    means: tuple[float, float] | None = None
    """Means over seeds, if each was trained with at least two."""
    counts: tuple[int, int] = (1, 1)
    """Number of seeds of each."""
    low: float = math.nan
    """Lower end of the interval of the difference of the means (Welch)."""
    high: float = math.nan


def compare_top_two(results: Results) -> TopTwo | None:
    """Compare the winner with the runner-up; None if there are not both.

    Seeds are those of trainings as the fit if both were repeated so, else of trainings as trials,
    without the search's own, with which both were chosen, if each has two others.
    """
    ranked = ranking(results)
    ranked = ranked[ranked["state"].isin(["complete", "pruned"])]
    if results.winner is None or len(ranked) < 2:
        return None
    winner, second = int(ranked.index[0]), int(ranked.index[1])
    tokens, values = int(trial_budgets(results)[winner]), ranked["bits_per_byte"]
    if (ranked["state"].iloc[:2] != "complete").any():
        tokens, values = at_equal_tokens(results, winner, second)
    gap = float(values[second] - values[winner])
    a, b = _results_over_seeds(results, winner, second)
    if min(len(a), len(b)) < 2:
        return TopTwo(winner, second, tokens, gap, counts=(len(a), len(b)))
    from scipy import stats

    interval = stats.ttest_ind(b, a, equal_var=False).confidence_interval(CONFIDENCE)
    means = float(np.mean(a)), float(np.mean(b))
    low, high = float(interval.low), float(interval.high)
    return TopTwo(winner, second, tokens, gap, means, (len(a), len(b)), low, high)


def _results_over_seeds(
    results: Results, winner: int, second: int
) -> tuple[np.ndarray, np.ndarray]:
    """Bits per byte of two trials' configurations by seed, trained as the fit or as the trials."""
    runs, pair = results.completed_runs, (winner, second)
    both = [runs[runs["configuration"] == _fit_configuration(results, n)] for n in pair]
    if min(map(len, both)) < 2:
        both = [runs[runs["configuration"] == results.trials.at[n, "configuration"]] for n in pair]
    others = [group[group["seed"] != results.config.seed] for group in both]
    a, b = others if min(map(len, others)) >= 2 else both
    return a["bits_per_byte"].to_numpy(), b["bits_per_byte"].to_numpy()


def _fit_configuration(results: Results, number: int) -> str:
    """The `configuration` of a trial's values as the fit trains them.

    Empty if it cannot: its workers may have become others since the trial ran.
    """
    with suppress(ConfigError):
        return results.configuration(results.config.fit_run(resolved_values(results, number)))
    return ""


def resolved_values(results: Results, number: int) -> dict[str, Any]:
    """The values of all searched keys of a trial; the base's where a key did not apply."""
    row = results.trials.loc[number]
    return {
        key: results.config.get(key) if row[key] == INACTIVE else python_value(row[key])
        for key in results.keys
    }


def python_value(value: Any) -> Any:
    """A value of a table as a plain Python value."""
    return value.item() if isinstance(value, np.generic) else value
