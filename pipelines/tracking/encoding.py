"""Encoding of parameters and rows of metrics for MLflow; used by the store and the writer."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mlflow.entities import Metric

ROWS_PER_BATCH = 100
"""Rows of a history in one request; each has a few of the metrics that a request may have."""

Row = Mapping[str, float]


def metric_entities(
    rows: Iterable[Row],
    *,
    model_id: str | None = None,
    dataset_name: str | None = None,
    dataset_digest: str | None = None,
) -> Iterator[Metric]:
    """The metrics of rows, at their `time` in seconds since 1970: MLflow stores equal points once.

    They can be those of a logged model, on a dataset.
    """
    for row in rows:
        milliseconds = int(1000 * row["time"])
        for key, value in row.items():
            if key not in ("step", "time"):
                yield Metric(
                    key,
                    value,
                    milliseconds,
                    int(row["step"]),
                    model_id=model_id,
                    dataset_name=dataset_name,
                    dataset_digest=dataset_digest,
                )


def encode_param(value: Any) -> str:
    """A parameter's value as MLflow stores it."""
    return value if isinstance(value, str) else json.dumps(value)
