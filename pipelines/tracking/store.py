"""The tracking store: MLflow's experiments, runs, artifacts and logged models.

A run is found by what it is (tags `dca.kind` and `dca.key`), never by its name or by the order of
events, so that a command that was killed finds its own work again. Whoever needs the store while it
is locked or away waits for it; histories are written behind the back of the training.
"""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from pipelines.config.yaml_text import flatten
from pipelines.console.errors import ConfigError, PipelineError
from pipelines.storage.files import File, size_of, uri_of
from pipelines.storage.remote import Folder
from pipelines.tracking.client import check_uri, connect
from pipelines.tracking.encoding import MOST_PARAMS, Row, encode_param, metric_entities
from pipelines.tracking.locks import database_lock
from pipelines.tracking.provenance import provenance
from pipelines.tracking.retries import cancel_retries, retry_transient
from pipelines.tracking.schema import KIND, NOTE_TAG
from pipelines.tracking.uri import tracking_uri


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"storage: {path} cannot be made a folder: {error.strerror}") from None


@dataclass(frozen=True)
class Store:
    """Runs of one experiment."""

    client: MlflowClient
    experiment_id: str

    @staticmethod
    def open(experiment: str, storage: Folder, *, create: bool = True) -> "Store | None":
        """Connect and find or create the experiment; None if it is not there and not to be made.

        With a database the artifacts lie in storage, or, if that is a URI, beside the database:
        MLflow would need clients of its own to reach it.
        """
        uri = tracking_uri()
        local = uri.startswith("sqlite:///")
        if not create and local and not Path(uri.removeprefix("sqlite:///")).exists():
            return None
        check_uri(uri)
        if isinstance(storage, Path):
            artifacts = storage / "artifacts"
            if create:
                _make_folder(storage)
        else:
            artifacts = Path(uri.removeprefix("sqlite:///")).with_name("mlartifacts")
        location = artifacts.as_uri() if local else None
        with database_lock(uri):  # MLflow's own first use of a database races
            client = connect(uri)
            found = client.get_experiment_by_name(experiment)
            if found is None and not create:
                return None
            if found is None:
                return Store(client, client.create_experiment(experiment, location, tags=KIND))
        if found.lifecycle_stage != "active":
            raise ConfigError(
                f"experiment: {experiment} was deleted in MLflow; restore or rename it"
            )
        return Store(client, found.experiment_id)

    def find(self, kind: str, key: str | None = None) -> list[Run]:
        """Live runs of a kind, newest first."""
        terms = [f"tags.`dca.kind` = '{kind}'", "tags.`dca.memory` = 'live'"]
        if key is not None:
            terms.append(f"tags.`dca.key` = '{key}'")
        return self._search(" and ".join(terms))

    def children(self, parent: str, kind: str) -> list[Run]:
        """Runs of a kind under a parent, newest first."""
        return self._search(
            f"tags.`mlflow.parentRunId` = '{parent}' and tags.`dca.kind` = '{kind}'"
        )

    def _search(self, query: str) -> list[Run]:
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id],
                query,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            runs.extend(page)
            token = page.token
            if not token:
                return runs

    def create(
        self,
        kind: str,
        key: str,
        name: str,
        *,
        parent: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Start a run, its parameters and provenance included, unless a live one has the key;
        returns its id."""
        identity = {"dca.kind": kind, "dca.key": key, "dca.memory": "live"}
        family = {"mlflow.parentRunId": parent} if parent else {}

        @retry_transient
        def make() -> Run:
            if made := self.find(kind, key):  # but its answer was lost, or nobody waited for it
                return made[0]
            return self.client.create_run(
                self.experiment_id,
                run_name=name,
                tags={**provenance(), **identity, **family, **(tags or {})},
            )

        run_id = str(make().info.run_id)
        self.log_params(run_id, params or {})
        return run_id

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Dotted parameters; logging the same ones again changes nothing."""
        entities = [Param(key, encode_param(value)) for key, value in flatten(params)]
        for first in range(0, len(entities), MOST_PARAMS):
            self.client.log_batch(run_id, params=entities[first : first + MOST_PARAMS])

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        self.client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def describe(self, text: str, run_id: str = "") -> None:
        """Describe a run, or the experiment, in Markdown; what somebody has written there stays."""
        if run_id:
            if NOTE_TAG not in self.client.get_run(run_id).data.tags:
                self.tag(run_id, {NOTE_TAG: text})
        elif NOTE_TAG not in self.client.get_experiment(self.experiment_id).tags:
            self.client.set_experiment_tag(self.experiment_id, NOTE_TAG, text)

    def history(self, run_id: str, metric: str) -> dict[int, float]:
        """A metric's values by step, ascending."""
        stored = self.client.get_metric_history(run_id, metric)
        return dict(sorted((point.step, point.value) for point in stored))

    def log_metrics(self, run_id: str, metrics: Row, **of: str) -> None:
        """Metrics that sum a run up, at step 0 unless they have one; once, however often told.

        They may be those `of` a logged model (`model_id`) on a dataset (`dataset_name`,
        `dataset_digest`), on whose pages they then are as well.
        """
        known = self.client.get_run(run_id).data.metrics
        new = {k: v for k, v in metrics.items() if k == "step" or known.get(k) != v}
        row = {"step": 0, "time": time.time(), **new}
        self.client.log_batch(run_id, metrics=list(metric_entities([row], **of)))

    def resume(self, run_id: str, params: Mapping[str, Any] | None = None) -> None:
        """Mark a run as running again; its parameters may have been lost with its creator."""
        self.client.update_run(run_id, status="RUNNING")
        if self.client.get_run(run_id).data.tags.get("dca.reason"):
            self.tag(run_id, {"dca.reason": ""})
        self.log_params(run_id, params or {})

    def end(self, run_id: str, status: str = "FINISHED") -> None:
        """End a run as FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run_id, status)

    def fail(self, run_id: str, error: BaseException) -> None:
        """End a run with its error, which matters more than a store that is away or refuses."""
        cancel_retries.set()
        with suppress(MlflowException, PipelineError):
            reason = (str(error) or type(error).__name__)[:5000]
            self.tag(run_id, {"dca.reason": reason})
            self.end(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")

    def log_corpus(self, run_id: str, corpus: Mapping[str, Any], **splits: File) -> None:
        """Record the bytes a run read as MLflow datasets, one for each split of a corpus."""
        inputs = []
        for split, file in splits.items():
            source = json.dumps({"uri": uri_of(file)})
            profile = json.dumps({"bytes": size_of(file)})
            name, digest = f"{corpus['name']} {split}", corpus["fingerprint"]
            dataset = Dataset(name, digest, "local", source, profile=profile)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", split)]))
        self.client.log_inputs(run_id, inputs)

    def log_use(self, run_id: str, model_id: str) -> None:
        """Record that a run worked with a logged model."""
        self.client.log_inputs(run_id, models=[LoggedModelInput(model_id)])

    def log_file(self, run_id: str, path: Path) -> None:
        """A file as an artifact of its name."""
        self.client.log_artifact(run_id, str(path))

    def log_text(self, run_id: str, text: str, file: str) -> None:
        """A small text artifact."""
        self.client.log_text(run_id, text, file)

    def log_files(self, run_id: str, folder: Path, name: str) -> None:
        """The files of a folder, as artifacts in a folder of that name."""
        self.client.log_artifacts(run_id, str(folder), name)

    def read_text(self, run_id: str, file: str) -> str:
        """A text artifact that was logged."""
        return str(mlflow.artifacts.load_text(f"runs:/{run_id}/{file}"))
