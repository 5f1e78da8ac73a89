"""The tracking store: MLflow's experiments, runs, artifacts and logged models.

A run is found by what it is (tags `dca.kind` and `dca.key`), never by its name or by the order of
events, so that a command that was killed finds its own work again. Whoever needs the store while it
is locked or away waits for it; histories are written behind the back of the training.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mlflow.entities import Metric

ROWS_PER_BATCH = 100
"""Rows of a history in one request, whole ones; a request takes at most 1,000 metrics."""

MOST_PARAMS = 100
"""What MLflow takes in one request."""

Row = Mapping[str, float]


def metric_entities(rows: Iterable[Row], **of: str) -> Iterator[Metric]:
    """At the `time` of their row, in seconds since 1970: MLflow stores equal points once."""
    for row in rows:
        milliseconds = int(1000 * row["time"])
        for key, value in row.items():
            if key not in ("step", "time"):
                yield Metric(key, value, milliseconds, int(row["step"]), **of)


def encode_param(value: Any) -> str:
    """A parameter's value as MLflow stores it."""
    return value if isinstance(value, str) else json.dumps(value)
