"""Encoding of parameters and rows of metrics for MLflow; used by the store and the writer."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mlflow.entities import Metric

ROWS_PER_BATCH = 100
"""Rows of a history in one request; each has a few of the metrics that a request may have."""

Row = Mapping[str, float]


def metric_entities(rows: Iterable[Row], **of: str) -> Iterator[Metric]:
    """The metrics of rows, at their `time` in seconds since 1970: MLflow stores equal points once.

    `of` names a logged model and a dataset.
    """
    for row in rows:
        milliseconds = int(1000 * row["time"])
        for key, value in row.items():
            if key not in ("step", "time"):
                yield Metric(key, value, milliseconds, int(row["step"]), **of)


def encode_param(value: Any) -> str:
    """A parameter's value as MLflow stores it."""
    return value if isinstance(value, str) else json.dumps(value)
