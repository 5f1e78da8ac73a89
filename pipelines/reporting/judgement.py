"""What can be said of the findings, and how surely: ranks, importance, seeds, pruning."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import create_trial
from scipy import stats

from pipelines.reporting.findings import INACTIVE, Findings
from pipelines.search.study import distribution

CONFIDENCE = 0.95
"""Of the intervals over seeds."""
FEWEST = 4
"""Trials below which nothing is said of importance."""
TREES = 32
"""Of fANOVA's forest: 200 trials of six keys take it about a second."""
MOST_TRIALS = 500
"""That fANOVA is given: its time grows with them."""


def comparable(found: Findings, *numbers: int) -> tuple[int, pd.Series]:
    """The most bytes that each of these trials was trained on, and its best value by then.

    Without numbers, of every trial with a result. Early stopping leaves trials at unequal depth:
    only there can all of them be compared. 0 and nothing without trials.
    """
    ended = found.trials.index[found.trials["state"].isin(["complete", "pruned"])]
    curves = found.curves[found.curves["number"].isin(numbers or ended)]
    if curves.empty:
        return 0, pd.Series(dtype=float)
    tokens = int(curves.groupby("number")["tokens"].max().min())
    reached = curves[curves["tokens"] <= tokens]
    return tokens, reached.groupby("number")["best"].min()


def ranking(found: Findings) -> pd.DataFrame:
    """The trials, best first: those that used their whole budget, then the deepest; the winner
    leads. With n, mean, low and high of its configuration over the seeds it was trained with."""
    order = {"complete": 0, "pruned": 1, "unfinished": 2, "failed": 3}
    table = found.trials.assign(
        _winner=found.trials.index != found.winner,
        _order=found.trials["state"].map(order),
        _depth=np.where(found.trials["state"] == "complete", 0, -found.trials["tokens"]),
        _number=found.trials.index,
    )
    by = ["_winner", "_order", "_depth", "bits_per_byte", "_number"]
    table = table.sort_values(by).drop(columns=[name for name in by if name.startswith("_")])
    return table.join(over_seeds(found), on="configuration")


def over_seeds(found: Findings) -> pd.DataFrame:
    """By configuration: n seeds, their mean, and the t-interval of the mean from two seeds on."""
    groups = found.results.groupby("configuration", sort=False)["bits_per_byte"]
    rows = {name: _interval(values.to_numpy()) for name, values in groups}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["n", "mean", "low", "high"])
    return table.astype({"n": "Int64"})


def _interval(values: np.ndarray) -> tuple[int, float, float, float]:
    n, mean = len(values), float(values.mean())
    if n < 2:
        return n, mean, math.nan, math.nan
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return n, mean, mean - half, mean + half


@dataclass(frozen=True)
class Importance:
    """How much of the trials' differences each searched key explains."""

    shares: pd.DataFrame
    """A row a key, most important first: share (of the variance, 0 to 1; NaN if it cannot be told),
    trials, always (whether it applied in all trials)."""
    tokens: int = 0
    """Bytes after which the trials were compared."""
    note: str = ""
    """Why there are no shares."""


def importance(found: Findings) -> Importance:
    """fANOVA over the trials at equal budget. A conditional key is judged, beside those that
    always apply, among the trials in which it did."""
    tokens, values = comparable(found)
    columns = ["share", "trials", "always"]
    nothing = pd.DataFrame([], columns=columns)
    if not found.keys:
        return Importance(nothing, tokens, "nothing was searched")
    if len(values) < FEWEST:
        note = f"{len(values)} trials have a result; at least {FEWEST} are needed to tell"
        return Importance(nothing, tokens, note)
    if values.max() - values.min() < 1e-9:
        return Importance(nothing, tokens, "all trials have the same result")
    table = found.trials.loc[values.index[-MOST_TRIALS:]]
    always = [key for key in found.keys if not (table[key] == INACTIVE).any()]
    rows = {}
    if always:
        shares = _fanova(found, table, values, always)
        rows = {key: (share, len(table), True) for key, share in shares.items()}
    for key in [key for key in found.keys if key not in always]:
        active = table[table[key] != INACTIVE]
        keys = [*(k for k in always if not _constant(active, k)), key]
        if len(active) >= FEWEST and np.ptp(values[active.index]) >= 1e-9:
            rows[key] = (_fanova(found, active, values, keys).get(key, 0.0), len(active), False)
        else:
            rows[key] = (math.nan, len(active), False)
    shares = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return Importance(shares.sort_values("share", ascending=False, kind="stable"), tokens)


def _constant(table: pd.DataFrame, key: str) -> bool:
    return bool(table[key].map(repr).nunique() < 2)


def _fanova(
    found: Findings, table: pd.DataFrame, values: pd.Series, keys: Sequence[str]
) -> dict[str, float]:
    """Shares of the variance of some trials' values that keys explain."""
    varied = [key for key in keys if not _constant(table, key)]
    if not varied:
        return dict.fromkeys(keys, 0.0)
    space = {key: distribution(found.config.search.space[key]) for key in varied}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    study.add_trials(
        [
            create_trial(
                params={key: _plain(row[key]) for key in varied},
                distributions=space,
                value=float(values[number]),
            )
            for number, row in table.iterrows()
        ]
    )
    evaluator = FanovaImportanceEvaluator(n_trees=TREES, seed=0)
    shares = evaluator.evaluate(study, params=varied)
    return {key: float(shares.get(key, 0.0)) for key in keys}


def _plain(value: Any) -> Any:
    """A value of a table as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


@dataclass(frozen=True)
class Saved:
    """What stopping trials early has not spent, against every trial to its end."""

    trials: int
    tokens: int
    seconds: float
    """Of training, added up over the trials, each at its own pace."""
    share: float
    """Of the bytes that all trials to their end would have read."""


def saved(found: Findings) -> Saved:
    """What pruning saved."""
    pruned = found.trials[found.trials["state"] == "pruned"]
    ended = found.trials[found.trials["state"].isin(["complete", "pruned"])]
    left = (budgets(found)[pruned.index] - pruned["tokens"]).clip(lower=0)
    pace = (pruned["seconds"] / pruned["tokens"]).where(pruned["tokens"] > 0, 0.0)
    spent = int(ended["tokens"].sum())
    tokens = int(left.sum())
    share = tokens / (tokens + spent) if tokens else 0.0
    return Saved(len(pruned), tokens, float((left * pace).sum()), share)


def budgets(found: Findings) -> pd.Series:
    """The bytes that each trial would have been trained on: whole steps of its own batch."""
    train = found.config.train
    sizes = found.trials.get("train.batch_tokens", train.batch_tokens)
    batch = pd.Series(sizes, index=found.trials.index).replace(INACTIVE, train.batch_tokens)
    return (-(-train.tokens // batch.astype(int)) * batch).astype(int)


@dataclass(frozen=True)
class Duel:
    """The winner against the next best configuration."""

    winner: int
    second: int
    tokens: int
    """Bytes of training after which they are compared."""
    gap: float
    """Bits per byte by which the winner is ahead, with one seed each."""
    means: tuple[float, float] | None = None
    """Over their seeds, if both were trained with two or more."""
    counts: tuple[int, int] = (1, 1)
    low: float = math.nan
    """The difference of the means is between these (Welch)."""
    high: float = math.nan


def duel(found: Findings) -> Duel | None:
    """The winner and the runner-up; None without either.

    Seeds are compared at the fit's budget if both were repeated there, else at the trials'.
    """
    ranked = ranking(found)
    ranked = ranked[ranked["state"].isin(["complete", "pruned"])]
    if found.winner is None or len(ranked) < 2:
        return None
    winner, second = int(ranked.index[0]), int(ranked.index[1])
    tokens, values = int(budgets(found)[winner]), ranked["bits_per_byte"]
    if (ranked["state"].iloc[:2] != "complete").any():
        tokens, values = comparable(found, winner, second)
    gap = float(values[second] - values[winner])
    a, b = seeds(found, winner, second)
    if min(len(a), len(b)) < 2:
        return Duel(winner, second, tokens, gap, counts=(len(a), len(b)))
    interval = stats.ttest_ind(b, a, equal_var=False).confidence_interval(CONFIDENCE)
    means = float(np.mean(a)), float(np.mean(b))
    low, high = float(interval.low), float(interval.high)
    return Duel(winner, second, tokens, gap, means, (len(a), len(b)), low, high)


def seeds(found: Findings, winner: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    """Results of two trials' configurations over seeds, at the fit's budget or the trials'."""
    by = found.results.groupby("configuration")["bits_per_byte"]
    groups = {str(name): group.to_numpy() for name, group in by}
    nothing = np.empty(0)
    budget = found.config.fit_run().train.tokens
    long = [
        groups.get(found.configuration(whole(found, n), budget), nothing) for n in (winner, second)
    ]
    if min(map(len, long)) >= 2:
        return long[0], long[1]
    short = [groups.get(found.trials.at[n, "configuration"], nothing) for n in (winner, second)]
    return short[0], short[1]


def whole(found: Findings, number: int) -> dict[str, Any]:
    """All searched keys of a trial; where one did not apply, what it was trained with."""
    row = found.trials.loc[number]
    return {
        key: found.config.get(key) if row[key] == INACTIVE else _plain(row[key])
        for key in found.keys
    }
