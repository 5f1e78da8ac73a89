"""Results as tables that a test makes itself, without a store."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pandas as pd

from pipelines.experiment import Experiment
from pipelines.reporting.results import INACTIVE, Results

PARAMETERS = 7000


def trial(
    state: str, curve: Sequence[float] = (), configuration: str = "", **values: Any
) -> dict[str, Any]:
    """A trial with a result after each 256 bytes."""
    return {"state": state, "curve": curve, "configuration": configuration, "values": values}


def results_of(
    config: Experiment,
    trials: Sequence[dict[str, Any]] = (),
    *,
    winner: int | None = None,
    completed: Sequence[tuple[str, int, float]] = (),
    **more: Any,
) -> Results:
    """Results with these trials, and with completed runs: configuration, seed and bits per byte."""
    outputs = {} if winner is None else {"select": {"trial": winner}}
    outputs |= more.pop("outputs", {})
    runs = {name: stage_run(name, result) for name, result in outputs.items()}
    columns = ["state", "reason", "bits_per_byte", "second", "tokens", "seconds", "parameters"]
    return Results(
        **{
            "config": config,
            "store": SimpleNamespace(read_result=lambda run: run.result),
            "pipeline": stage_run("pipeline", {}, run_id=32 * "a"),
            "stages": runs,
            "trials": pd.DataFrame(
                [_row(number, one) for number, one in enumerate(trials)],
                columns=[*columns, "pareto", "configuration", "run_id", *config.search.space],
                dtype=object,  # or null would become NaN
            ).astype(
                {
                    "bits_per_byte": float,
                    "second": float,
                    "seconds": float,
                    "pareto": bool,
                    "tokens": int,
                }
            ),
            "curves": pd.DataFrame(
                [point for number, one in enumerate(trials) for point in _curve(number, one)],
                columns=["name", "number", "step", "tokens", "seconds", "bits_per_byte", "best"],
            ),
            "completed_runs": pd.DataFrame(
                completed, columns=["configuration", "seed", "bits_per_byte"]
            ),
            "lineage": {
                "corpus": {"name": "files", "fingerprint": "0" * 32},
                "provenance": {},
                "hardware": {},
            },
        }
        | more
    )


def stage_run(
    name: str, result: Any, status: str = "FINISHED", run_id: str = "", **tags: str
) -> Any:
    info = SimpleNamespace(run_id=run_id or f"the run of {name}", status=status)
    data = SimpleNamespace(tags=tags, metrics={}, params={})
    return SimpleNamespace(info=info, data=data, result=result)


def _row(number: int, one: dict[str, Any]) -> dict[str, Any]:
    values = dict(one["values"])
    second = values.pop("second", float("nan"))
    return {
        "state": one["state"],
        "reason": values.pop("reason", ""),
        "bits_per_byte": min(one["curve"], default=float("nan")),
        "second": second,
        "pareto": values.pop("pareto", False),
        "tokens": 256 * len(one["curve"]),
        "seconds": 2.0 * len(one["curve"]),
        "parameters": PARAMETERS,
        "configuration": one["configuration"] or f"configuration {number}",
        "run_id": f"run {number}",
        **{key.replace("__", "."): value for key, value in values.items()},
    }


def _curve(number: int, one: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": f"trial {number}",
            "number": number,
            "step": step,
            "tokens": 256 * step,
            "seconds": 2.0 * step,
            "bits_per_byte": bits,
            "best": min(one["curve"][:step]),
        }
        for step, bits in enumerate(one["curve"], 1)
    ]


__all__ = ["INACTIVE", "PARAMETERS", "results_of", "stage_run", "trial"]
