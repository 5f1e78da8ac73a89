"""Tables of trials, learning curves and completed runs, from the runs in the tracking store.

Used by pipelines.reporting.loading.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from pipelines.console.errors import ConfigError
from pipelines.experiment import Experiment
from pipelines.reporting.results import INACTIVE
from pipelines.tracking.schema import (
    BATCH_TOKENS_PARAM,
    BEST_METRIC,
    KIND_TAG,
    SECONDS_METRIC,
    SEED_PARAM,
    STATE_TAG,
    TRAIN_TOKENS_PARAM,
    TRIAL_KIND,
    stage_outputs,
)
from pipelines.tracking.store import Run, Store
from pipelines.tracking.trials import StoredTrial, read_evaluations


def trial_table(
    config: Experiment, trials: Sequence[StoredTrial], configurations: Mapping[str, str]
) -> pd.DataFrame:
    """`Results.trials`; `configurations` are by run id."""
    columns = ["number", "run_id", "state", "reason", "bits_per_byte", "second", "tokens", "steps"]
    columns += ["seconds", "parameters", "pareto", "configuration", *config.search.space]
    rows = [_trial_row(config, trial) for trial in trials]
    rows = [row | {"configuration": configurations[row["run_id"]]} for row in rows]
    table = pd.DataFrame(rows, columns=columns, dtype=object)  # or null would become NaN
    reals, integers = ("bits_per_byte", "second", "seconds"), ("tokens", "steps", "number")
    kinds = dict.fromkeys(reals, "float") | dict.fromkeys(integers, "int")
    return table.astype(kinds | {"parameters": "Int64", "pareto": "bool"}).set_index("number")


def _trial_row(config: Experiment, trial: StoredTrial) -> dict[str, Any]:
    batch_tokens = int(trial.params.get(BATCH_TOKENS_PARAM, config.train.batch_tokens))
    return {
        "number": trial.number,
        "run_id": trial.run_id,
        "state": trial.state or "unfinished",
        "reason": trial.reason,
        "bits_per_byte": float("nan") if trial.objective is None else trial.objective,
        "second": float("nan") if trial.second is None else float(trial.second),
        "tokens": trial.tokens,
        "steps": trial.tokens // batch_tokens,
        "seconds": trial.seconds,
        "parameters": trial.parameters or _parameter_count(config, trial.values),
        "pareto": trial.pareto,
        **{key: trial.values.get(key, INACTIVE) for key in config.search.space},
    }


def _parameter_count(config: Experiment, values: Mapping[str, Any]) -> int | None:
    """Parameters of a trial's model; None if its values do not go together, for which it failed."""
    try:
        return config.training_run(values).model.parameter_count()
    except ConfigError:
        return None


def curve_table(
    store: Store, config: Experiment, trials: Sequence[StoredTrial], fits: Sequence[Run]
) -> pd.DataFrame:
    """`Results.curves`."""
    columns = ["name", "number", "step", "tokens", "seconds", "bits_per_byte", "best"]
    metric = config.train.best_metric
    curves = [(f"trial {t.number}", t.number, t.run_id, t.evaluations) for t in trials]
    for run in fits:
        evaluations = read_evaluations(store, run.info.run_id, run.data.params, metric)
        curves.append((run.data.tags[KIND_TAG], -1, run.info.run_id, evaluations))
    rows = []
    for name, number, run_id, evaluations in curves:
        seconds = store.history(run_id, SECONDS_METRIC) if evaluations else {}
        for one in evaluations:
            row = {"name": name, "number": number, **asdict(one)}
            rows.append(row | {"seconds": seconds.get(one.step, float("nan"))})
    return pd.DataFrame(rows, columns=columns)


def completed_run_table(
    runs: Sequence[Run], configurations: Mapping[str, str], metric: str
) -> pd.DataFrame:
    """`Results.completed_runs`; `configurations` are by run id.

    Of several runs with the same configuration and seed only the first counts: a repetition adds
    no independent result.
    """
    columns = ["configuration", "kind", "run_id", "seed", "bits_per_byte", "tokens", "started"]
    rows = [
        {
            "configuration": configurations[run.info.run_id],
            "kind": run.data.tags[KIND_TAG],
            "run_id": run.info.run_id,
            "seed": int(run.data.params[SEED_PARAM]),
            "bits_per_byte": run.data.metrics.get(BEST_METRIC.format(metric), float("nan")),
            "tokens": int(run.data.params[TRAIN_TOKENS_PARAM]),
            "started": run.info.start_time,
        }
        for run in runs
        if _is_complete(run)
    ]
    table = pd.DataFrame(rows, columns=columns).dropna(subset="bits_per_byte")
    table = table.sort_values("started", kind="stable").drop(columns="started")
    return table.drop_duplicates(["configuration", "seed"]).reset_index(drop=True)


def _is_complete(run: Run) -> bool:
    """Whether a run used its whole budget, or was stopped by its own patience, and has what the
    table needs: its parameters may have been deleted from the store."""
    if not run.data.params.keys() >= {SEED_PARAM, TRAIN_TOKENS_PARAM}:
        return False
    if run.data.tags[KIND_TAG] == TRIAL_KIND:
        return bool(run.data.tags.get(STATE_TAG) == "complete")
    return stage_outputs(run.data.tags) is not None
