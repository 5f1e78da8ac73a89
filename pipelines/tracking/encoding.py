"""Encoding of parameters, tags and rows of metrics for MLflow; used by the store and the writer."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipelines.compat.mlflow import (
    DATASET_CONTEXT_TAG,
    MAX_PARAM_CHARACTERS,
    MAX_TAG_CHARACTERS,
    NOTE_TAG,
)
from pipelines.config.yaml_text import flatten
from pipelines.console.errors import PipelineError
from pipelines.console.secrets import redact
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.storage.files import File, size_of, uri_of
from pipelines.training.history import STEP, TIME

if TYPE_CHECKING:  # MLflow, which takes two seconds to import
    from mlflow.entities import DatasetInput, Metric, Param, RunTag

CUT_MARK = "\n\n(cut)"
"""End of a description that was too long."""
ROWS_PER_BATCH = 100
"""Rows of a history in one request; each has a few of the metrics that a request may have."""

Row = Mapping[str, float]


def metric_entities(
    rows: Iterable[Row],
    *,
    model_id: str | None = None,
    dataset_name: str | None = None,
    dataset_digest: str | None = None,
) -> "Iterator[Metric]":
    """The metrics of rows, at their `time` in seconds since 1970: MLflow stores equal points once.

    They can be those of a logged model, on a dataset.
    """
    from mlflow.entities import Metric

    for row in rows:
        milliseconds = int(1000 * row[TIME])
        for key, value in row.items():
            if key not in (STEP, TIME):
                yield Metric(
                    key,
                    value,
                    milliseconds,
                    int(row[STEP]),
                    model_id=model_id,
                    dataset_name=dataset_name,
                    dataset_digest=dataset_digest,
                )


def dataset_input(corpus: PreparedCorpus, split: str, file: File) -> "DatasetInput":
    """The bytes of a split that a run read, as MLflow's dataset."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": uri_of(file)})
    profile = json.dumps({"bytes": size_of(file)})
    name, digest = f"{corpus.name} {split}", corpus.fingerprint
    dataset = Dataset(name, digest, "local", source, profile=profile)
    return DatasetInput(dataset, [InputTag(DATASET_CONTEXT_TAG, split)])


def encode_params(params: Mapping[str, Any]) -> "list[Param]":
    """Parameters by dotted keys, without secrets."""
    from mlflow.entities import Param

    return [Param(key, redact(encode_param(value))) for key, value in flatten(params)]


def encode_param(value: Any) -> str:
    """A parameter's value as MLflow stores it.

    The end of a long one is a digest of the whole, so that two that differ stay different.
    """
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= MAX_PARAM_CHARACTERS:
        return text
    end = f"... (sha256 {hashlib.sha256(text.encode()).hexdigest()})"
    return text[: MAX_PARAM_CHARACTERS - len(end)] + end


def encode_tags(tags: Mapping[str, str]) -> "list[RunTag]":
    """Tags as MLflow stores them, without secrets.

    Raises PipelineError for a value that it would cut short. A description, which only people
    read, is cut here, and says so at its end.
    """
    from mlflow.entities import RunTag

    return [RunTag(key, _within_limit(key, redact(str(value)))) for key, value in tags.items()]


def _within_limit(key: str, value: str) -> str:
    if len(value) <= MAX_TAG_CHARACTERS:
        return value
    if key == NOTE_TAG:
        return value[: MAX_TAG_CHARACTERS - len(CUT_MARK)] + CUT_MARK
    raise PipelineError(
        f"tag {key}: {len(value):,} characters, expected at most {MAX_TAG_CHARACTERS:,}, "
        "as MLflow stores them"
    )
