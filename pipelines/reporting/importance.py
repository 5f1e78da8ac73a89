"""Importance of the searched keys, by Optuna's fANOVA and PED-ANOVA at equal budget."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from pipelines.reporting.results import INACTIVE, Results
from pipelines.reporting.statistics import at_equal_tokens, python_value

MIN_TRIALS = 4
"""With fewer trials no importance is computed."""
MIN_DIFFERENCE = 1e-9
"""Bits per byte between the best and the worst trial below which all count as equal."""
TREES = 32
"""Trees of fANOVA's random forest: 200 trials of six keys take about a second."""
BEST_SHARE, MIN_BEST, MIN_PED_ANOVA_TRIALS = 0.1, 5, 20
"""PED-ANOVA compares the best tenth with all trials: Optuna advises at least five of them, which
may be a fourth of the trials."""
MAX_TRIALS = 500
"""Trials passed to fANOVA, the latest: its time grows with their number."""
COLUMNS = ["share", "trials", "always"]


@dataclass(frozen=True)
class Importance:
    """The share of the variance between trials that each searched key explains."""

    shares: pd.DataFrame
    """One row per key, most important first: share (of the variance, 0 to 1; NaN with too few
    trials, or where no other key varied: it would be 1 whatever the results are), trials (their
    number), always (whether the key applied in all trials)."""
    tokens: int = 0
    """Budget at which the trials were compared."""
    note: str = ""
    """Why there are no shares."""
    best: dict[str, float] = field(default_factory=dict)
    """Of each key the share, by PED-ANOVA, of what distinguishes the best trials from all, largest
    first; empty with fewer than MIN_PED_ANOVA_TRIALS trials, or if only one key varied."""

    @property
    def obstacle(self) -> str:
        """Why no key is the most important one; empty if one is."""
        share = self.shares["share"]
        if self.note or (share[self.shares["always"].astype(bool)] > 0).any():
            return self.note
        if share.empty or share.isna().any():
            return "no key could be compared with another"
        return "no searched key varied"


def importance(results: Results) -> Importance:
    """fANOVA over the trials at equal budget.

    A conditional key is evaluated among the trials in which it applied, together with the keys
    that always apply.
    """
    tokens, values = at_equal_tokens(results)
    if note := _obstacle(results, values):
        return Importance(pd.DataFrame([], columns=COLUMNS), tokens, note)
    table = results.trials.loc[values.index[-MAX_TRIALS:]]
    always = [key for key in results.keys if not (table[key] == INACTIVE).any()]
    rows: dict[str, tuple[float, int, bool]] = {}
    if always:
        shares = _fanova(results, table, values, always)
        rows = {key: (share, len(table), True) for key, share in shares.items()}
    for key in [key for key in results.keys if key not in always]:
        active = table[table[key] != INACTIVE]
        keys = [*(k for k in always if not _is_constant(active, k)), key]
        share = math.nan
        if len(active) >= MIN_TRIALS and np.ptp(values[active.index]) >= MIN_DIFFERENCE:
            share = _fanova(results, active, values, keys).get(key, 0.0)
        rows[key] = (share, len(active), False)
    shares_table = pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS)
    shares_table = shares_table.sort_values("share", ascending=False, kind="stable")
    every = results.trials.loc[values.index]
    return Importance(shares_table, tokens, best=_ped_anova(results, every, values))


def _ped_anova(results: Results, table: pd.DataFrame, values: pd.Series) -> dict[str, float]:
    """Shares of the keys in which the best trials are distributed otherwise than all trials.

    It is made for conditional keys too, and for the trials of samplers that learn, which are dense
    where the results are good (arXiv 2304.10255).
    """
    keys = [key for key in results.keys if not _is_constant(table, key)]
    if len(table) < MIN_PED_ANOVA_TRIALS or len(keys) < 2:
        return {}
    from optuna.importance import PedAnovaImportanceEvaluator

    share = max(BEST_SHARE, MIN_BEST / len(table))
    found = _evaluate(
        results, table, values, keys, PedAnovaImportanceEvaluator(target_quantile=share)
    )
    total = sum(found.values())
    if not total:
        return {}
    return dict(sorted(((k, v / total) for k, v in found.items()), key=lambda one: -one[1]))


def _obstacle(results: Results, values: pd.Series) -> str:
    """Why no importance can be computed; empty if it can."""
    if not results.keys:
        return "nothing was searched"
    if len(values) < MIN_TRIALS:
        return f"results of trials: {len(values)}; at least {MIN_TRIALS} are needed"
    if values.max() - values.min() < MIN_DIFFERENCE:
        return "all trials have the same result"
    return ""


def _is_constant(table: pd.DataFrame, key: str) -> bool:
    return bool(table[key].map(repr).nunique() < 2)


def _fanova(
    results: Results, table: pd.DataFrame, values: pd.Series, keys: Sequence[str]
) -> dict[str, float]:
    """Shares of the variance of these trials' values that keys explain; 0 of one that did not vary,
    NaN of one that varied alone."""
    from optuna.importance import FanovaImportanceEvaluator  # with scikit-learn

    varied = [key for key in keys if not _is_constant(table, key)]
    if len(varied) < 2:
        return dict.fromkeys(keys, 0.0) | dict.fromkeys(varied, math.nan)
    evaluator = FanovaImportanceEvaluator(n_trees=TREES, seed=0)
    shares = _evaluate(results, table, values, varied, evaluator)
    return {key: shares.get(key, 0.0) for key in keys}


def _evaluate(
    results: Results, table: pd.DataFrame, values: pd.Series, keys: Sequence[str], evaluator: Any
) -> dict[str, float]:
    """What an evaluator of Optuna finds for these keys; a trial has those that applied."""
    import optuna
    from optuna.trial import create_trial

    from pipelines.compat.optuna import quiet
    from pipelines.search.study import distribution

    space = {key: distribution(results.config.search.space[key]) for key in keys}
    trials = []
    for number, row in table.iterrows():
        params = {key: python_value(row[key]) for key in keys if row[key] != INACTIVE}
        own = {key: space[key] for key in params}
        trials.append(create_trial(params=params, distributions=own, value=float(values[number])))
    with quiet():
        study = optuna.create_study()
        study.add_trials(trials)
        found: dict[str, Any] = evaluator.evaluate(study, params=list(keys))
    return {key: float(share) for key, share in found.items()}
