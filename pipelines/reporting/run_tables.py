"""Tables of trials, learning curves and completed runs, from the runs in the tracking store.

Used by pipelines.reporting.loading.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import pandas as pd

from pipelines.console.errors import ConfigError
from pipelines.experiment import Experiment
from pipelines.reporting.results import INACTIVE
from pipelines.tracking.schema import (
    KIND_TAG,
    OLD_PARETO_TAG,
    OUTPUTS_TAG,
    PARETO_TAG,
    REASON_TAG,
    STATE_TAG,
    TRIAL_TAG,
    VALUES_TAG,
)
from pipelines.tracking.store import Run, Store


def trial_number(run: Run) -> int:
    """Number of the trial that a run belongs to; -1 for another kind of run."""
    return int(run.data.tags.get(TRIAL_TAG, -1))


def trial_table(
    config: Experiment, runs: Sequence[Run], configurations: Mapping[str, str]
) -> pd.DataFrame:
    """`Results.trials`; `configurations` are by run id."""
    columns = ["number", "run_id", "state", "reason", "bits_per_byte", "second", "tokens", "steps"]
    columns += ["seconds", "parameters", "pareto", "configuration", *config.search.space]
    rows = [_trial_row(config, run) for run in runs]
    rows = [row | {"configuration": configurations[row["run_id"]]} for row in rows]
    table = pd.DataFrame(rows, columns=columns, dtype=object)  # or null would become NaN
    reals, integers = ("bits_per_byte", "second", "seconds"), ("tokens", "steps", "number")
    kinds = dict.fromkeys(reals, "float") | dict.fromkeys(integers, "int")
    return table.astype(kinds | {"parameters": "Int64", "pareto": "bool"}).set_index("number")


def _trial_row(config: Experiment, run: Run) -> dict[str, Any]:
    tags, metrics = run.data.tags, run.data.metrics
    values = json.loads(tags[VALUES_TAG])
    tokens, seconds = int(metrics.get("tokens", 0)), metrics.get("seconds", 0.0)
    batch_tokens = int(run.data.params.get("train.batch_tokens", config.train.batch_tokens))
    row = {
        "number": trial_number(run),
        "run_id": run.info.run_id,
        "state": tags.get(STATE_TAG, "unfinished"),
        "reason": tags.get(REASON_TAG, ""),
        "bits_per_byte": metrics.get(f"best_{config.train.best_metric}", float("nan")),
        "tokens": tokens,
        "steps": tokens // batch_tokens,
        "seconds": seconds,
        "parameters": _parameter_count(config, values),
        "pareto": "true" in (tags.get(PARETO_TAG), tags.get(OLD_PARETO_TAG)),
        **{key: values.get(key, INACTIVE) for key in config.search.space},
    }
    return row | {"second": _second_value(config, row)}


def _parameter_count(config: Experiment, values: Mapping[str, Any]) -> int | None:
    """Parameters of a trial's model; None if its values do not go together, for which it failed."""
    try:
        return config.training_run(values).model.parameter_count()
    except ConfigError:
        return None


def _second_value(config: Experiment, row: Mapping[str, Any]) -> float:
    """Value of the second objective; NaN without one, or if the trial is not complete."""
    second = config.search.second_objective
    if second == "parameters" and row["state"] == "complete":
        return float(row["parameters"])
    if second == "bytes_per_second" and row["state"] == "complete" and row["seconds"]:
        return float(row["tokens"] / row["seconds"])
    return float("nan")


def curve_table(
    store: Store, config: Experiment, trials: Sequence[Run], fits: Sequence[Run]
) -> pd.DataFrame:
    """`Results.curves`."""
    columns = ["name", "number", "step", "tokens", "seconds", "bits_per_byte", "best"]
    named = [(run, f"trial {trial_number(run)}") for run in trials]
    named += [(run, run.data.tags[KIND_TAG]) for run in fits]
    rows = [row for run, name in named for row in _curve_rows(store, config, run, name)]
    return pd.DataFrame(rows, columns=columns)


def _curve_rows(store: Store, config: Experiment, run: Run, name: str) -> list[dict[str, Any]]:
    run_id, metric = run.info.run_id, config.train.best_metric
    if not run.data.metrics.get("val_bits_per_byte"):
        return []
    evaluated = store.history(run_id, "val_bits_per_byte")
    objective = evaluated if metric == "val_bits_per_byte" else store.history(run_id, metric)
    seconds = store.history(run_id, "seconds")
    batch_tokens = int(run.data.params["train.batch_tokens"])
    best = accumulate((objective[step] for step in evaluated), min)
    return [
        {
            "name": name,
            "number": trial_number(run),
            "step": step,
            "tokens": step * batch_tokens,
            "seconds": seconds.get(step, float("nan")),
            "bits_per_byte": value,
            "best": so_far,
        }
        for (step, value), so_far in zip(evaluated.items(), best, strict=True)
    ]


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
            "seed": int(run.data.params["seed"]),
            "bits_per_byte": run.data.metrics.get(f"best_{metric}", float("nan")),
            "tokens": int(run.data.params["train.tokens"]),
            "started": run.info.start_time,
        }
        for run in runs
        if _is_complete(run)
    ]
    table = pd.DataFrame(rows, columns=columns).dropna(subset="bits_per_byte")
    table = table.sort_values("started", kind="stable").drop(columns="started")
    return table.drop_duplicates(["configuration", "seed"]).reset_index(drop=True)


def _is_complete(run: Run) -> bool:
    """Whether a run used its whole budget, or was stopped by its own patience."""
    if run.data.tags[KIND_TAG] == "trial":
        return bool(run.data.tags.get(STATE_TAG) == "complete")
    return OUTPUTS_TAG in run.data.tags
