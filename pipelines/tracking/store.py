"""The runs of one experiment in the tracking store.

Used by the engine, the stages and the reports. A run has a kind and a key as tags; a
restarted command finds its runs by these.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from mlflow.entities import Experiment, LifecycleStage, LoggedModelInput, Run
from mlflow.exceptions import MlflowException

from pipelines.compat.mlflow import (
    EXISTS,
    EXPERIMENT_KIND,
    FAILED,
    FINISHED,
    KILLED,
    MAX_TAG_CHARACTERS,
    MISSING,
    NOTE_TAG,
    PARENT_RUN_TAG,
    RUNNING,
    all_pages,
)
from pipelines.console.errors import DamagedError, PipelineError, StorageError
from pipelines.console.secrets import redact
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.storage.digests import sha256_of
from pipelines.storage.files import File
from pipelines.storage.remote import Folder
from pipelines.storage.scratch import scratch_folder
from pipelines.tracking.client import RetryingClient, check_uri, connect
from pipelines.tracking.encoding import (
    Row,
    dataset_input,
    encode_params,
    encode_tags,
    metric_entities,
)
from pipelines.tracking.locks import store_lock
from pipelines.tracking.models import ModelStore
from pipelines.tracking.provenance import process_has_ended, provenance, this_process
from pipelines.tracking.schema import (
    ARTIFACT_TAG,
    BASIS_TAG,
    CACHE_TAG,
    CHECKPOINT_KEY_TAG,
    KEY_TAG,
    KIND_TAG,
    LIVE,
    OUTPUTS_TAG,
    PROCESS_TAG,
    REASON_TAG,
    RESULT_FILE,
    RESULT_IS_IN_FILE,
    RESUMED,
    SCHEMA_TAG,
    SCHEMA_VERSION,
    TRAINING_KINDS,
    schema_version,
    stage_outputs,
)
from pipelines.tracking.uri import (
    artifact_location,
    database_file,
    deleted_experiment,
    make_storage,
    require_artifacts,
    tracking_uri,
)
from pipelines.training.history import STEP, TIME

__all__ = ["Run", "Store"]

MAX_REASON_CHARACTERS = 5000


@dataclass(frozen=True)
class Store:
    """Runs of one experiment."""

    client: RetryingClient
    experiment_id: str
    described: bool = False
    """Whether the experiment had a description when it was opened."""

    @staticmethod
    def open(experiment: str, storage: Folder | None, *, create: bool = True) -> "Store | None":
        """Connect and find or create the experiment; None if there is none and `create` is False.

        With a database the artifacts lie in storage, or, if that is a URI, beside the database:
        MLflow would need clients of its own to reach it. No storage: it does not matter.
        """
        uri = tracking_uri()
        database = database_file(uri)
        if database and not database.exists() and not create:
            return None
        check_uri(uri)
        if create and isinstance(storage, Path):
            make_storage(storage)
        with store_lock(uri):  # MLflow's own first use of a database races
            client = connect(uri)
            # a server refuses an empty name, which nothing that is stored can have
            found = client.get_experiment_by_name(experiment) if experiment else None
            if found is None:
                if not create or storage is None:
                    return None
                location = artifact_location(storage, database) if database else None
                found = client.retry(partial(_experiment, client, experiment, location))
        if found.lifecycle_stage != LifecycleStage.ACTIVE:
            raise deleted_experiment(found.name, found.experiment_id)
        require_artifacts(found.name, found.artifact_location, storage, warn=create)
        return Store(client, found.experiment_id, NOTE_TAG in found.tags)

    @property
    def models(self) -> ModelStore:
        """The logged models of the same store."""
        return ModelStore(self.client)

    @cached_property
    def run_tags(self) -> dict[str, str]:
        """The tags of every run that is created through this object, computed once."""
        return provenance()

    def find(self, kind: str, key: str | None = None, *, basis: str | None = None) -> list[Run]:
        """Reusable runs of a kind, newest first: those whose tag `dca.memory` is `live`.

        With a key, those that have it; with a basis the same.
        """
        return self._tagged({KIND_TAG: kind, CACHE_TAG: LIVE, KEY_TAG: key, BASIS_TAG: basis})

    def find_all(self, kind: str, basis: str) -> list[Run]:
        """Runs of a kind with a basis, newest first, also those that may not be reused."""
        return self._tagged({KIND_TAG: kind, BASIS_TAG: basis})

    def children(self, parent: str, kind: str) -> list[Run]:
        """Runs of a kind under a parent, newest first."""
        return self._tagged({PARENT_RUN_TAG: parent, KIND_TAG: kind})

    def _tagged(self, tags: Mapping[str, str | None]) -> list[Run]:
        terms = [f"tags.`{tag}` = '{value}'" for tag, value in tags.items() if value is not None]
        return self._search(" and ".join(terms))

    def _search(self, query: str, experiments: Sequence[str] = ()) -> list[Run]:
        ids = experiments or [self.experiment_id]
        order = ["attributes.start_time DESC"]
        return all_pages(self.client.search_runs, ids, query, order_by=order)

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
        """Create a run with its parameters and provenance; returns its id.

        If a reusable run of the kind has the key, that one's id is returned. A new one that trains
        has a random key of another kind, by which its checkpoints are signed. Raises PipelineError
        if a tag is too long to be stored whole.
        """
        identity = {KIND_TAG: kind, KEY_TAG: key, CACHE_TAG: LIVE, SCHEMA_TAG: str(SCHEMA_VERSION)}
        identity[PROCESS_TAG] = this_process()
        if parent:
            identity[PARENT_RUN_TAG] = parent
        if kind in TRAINING_KINDS:
            identity[CHECKPOINT_KEY_TAG] = secrets.token_hex(16)
        encoded = encode_tags({**self.run_tags, **identity, **(tags or {})})
        all_tags = {tag.key: tag.value for tag in encoded}

        def create_once() -> Run:
            if found := self.find(kind, key):  # created before, but the answer was lost
                return found[0]
            return self.client.create_run(self.experiment_id, run_name=name, tags=all_tags)

        run_id = str(self.client.retry(create_once).info.run_id)
        self.log_params(run_id, params or {})
        return run_id

    def checkpoint_key(self, run_id: str) -> str | None:
        """The key with which the checkpoints of a run are signed; None for one of an older store.

        The run may have been created by another process, under another search.
        """
        key: str | None = self.client.get_run(run_id).data.tags.get(CHECKPOINT_KEY_TAG)
        return key

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Log parameters by dotted keys; idempotent."""
        self.client.log_batch(run_id, params=encode_params(params))

    def tag(
        self, run_id: str, tags: Mapping[str, str], *, stored: Mapping[str, str] | None = None
    ) -> None:
        """Set tags of a run, but those that it has: `stored` are its tags as they were read.

        Raises PipelineError if one is too long to be stored whole.
        """
        new = [tag for tag in encode_tags(tags) if (stored or {}).get(tag.key) != tag.value]
        self.client.log_batch(run_id, tags=new)

    def untag(self, run_id: str, tag: str) -> None:
        """Remove a tag of a run, if it has it: a call whose answer was lost has removed it."""
        try:
            self.client.delete_tag(run_id, tag)
        except MlflowException as error:
            if error.error_code != MISSING:
                raise

    def describe(self, text: str, run_id: str = "") -> None:
        """Describe a run, or the experiment, in Markdown, unless it has a description."""
        if run_id:
            if NOTE_TAG not in self.client.get_run(run_id).data.tags:
                self.tag(run_id, {NOTE_TAG: text})
        elif self.described:
            return
        elif NOTE_TAG not in self.client.get_experiment(self.experiment_id).tags:
            self.client.set_experiment_tag(self.experiment_id, NOTE_TAG, redact(text))

    def history(self, run_id: str, metric: str) -> dict[int, float]:
        """A metric's values by step, ascending."""
        stored = self.client.get_metric_history(run_id, metric)
        return dict(sorted((point.step, point.value) for point in stored))

    def log_metrics(
        self,
        run_id: str,
        metrics: Row,
        *,
        model_id: str | None = None,
        dataset_name: str | None = None,
        dataset_digest: str | None = None,
    ) -> None:
        """Log summary metrics of a run, at step 0 unless they have one; each value is stored once.

        With a logged model's id and a dataset they are shown on the pages of both as well.
        """
        stored = self.client.get_run(run_id).data.metrics
        new = {k: v for k, v in metrics.items() if k == STEP or stored.get(k) != v}
        row = {STEP: 0, TIME: time.time(), **new}
        entities = metric_entities(
            [row], model_id=model_id, dataset_name=dataset_name, dataset_digest=dataset_digest
        )
        self.client.log_batch(run_id, metrics=list(entities))

    def write_result(self, run_id: str, result: Mapping[str, Any]) -> None:
        """Store the result of a stage's run: from now on the run counts as finished."""
        text = json.dumps(result)
        if len(text) > MAX_TAG_CHARACTERS:
            self.log_text(run_id, text, RESULT_FILE)
            text = json.dumps(RESULT_IS_IN_FILE)
        self.tag(run_id, {OUTPUTS_TAG: text})

    def read_result(self, run: Run) -> dict[str, Any] | None:
        """The result of a stage's run; None while it has none, or if it is damaged."""
        found = stage_outputs(run.data.tags)
        if found != RESULT_IS_IN_FILE:
            return found
        try:
            return dict(json.loads(self.read_text(run.info.run_id, RESULT_FILE)))
        except (MlflowException, OSError, TypeError, ValueError, DamagedError):
            return None

    def resume(self, run_id: str, params: Mapping[str, Any] | None = None) -> None:
        """Mark a run as running again, and log its parameters; idempotent.

        Its reason distinguishes it from a run without a break.
        """
        self.client.update_run(run_id, status=RUNNING)
        tags = encode_tags({REASON_TAG: RESUMED, PROCESS_TAG: this_process()})
        self.client.log_batch(run_id, params=encode_params(params or {}), tags=tags)

    def end(self, run_id: str, status: str = FINISHED) -> None:
        """End a run as FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run_id, status)

    def end_killed(self) -> None:
        """End the runs that killed commands of this machine have left RUNNING in any experiment.

        Those of another user of a server, who may not be allowed to change them, stay.
        """
        own = f"tags.`{PROCESS_TAG}` LIKE '{this_process().split()[0]} %'"
        ids = [one.experiment_id for one in all_pages(self.client.search_experiments)]
        for run in self._search(f"attributes.status = '{RUNNING}' and {own}", ids):
            if process_has_ended(run.data.tags[PROCESS_TAG]):
                with suppress(StorageError):
                    self.end(run.info.run_id, KILLED)

    def fail(self, run_id: str, error: BaseException, *, command_ends: bool = True) -> None:
        """End a run as FAILED, or KILLED after Ctrl-C, with the error as its reason.

        Errors of the store itself are suppressed, so that the caller's error is the one raised. If
        the command ends with it, no call is repeated from then on.
        """
        if command_ends:
            self.client.cancel_retries()
        with suppress(MlflowException, PipelineError):
            reason = redact(str(error) or type(error).__name__)[:MAX_REASON_CHARACTERS]
            self.tag(run_id, {REASON_TAG: reason})
            self.end(run_id, KILLED if isinstance(error, KeyboardInterrupt) else FAILED)

    def log_corpus(self, run_id: str, corpus: PreparedCorpus, **splits: File) -> None:
        """Record the bytes a run read as MLflow datasets, one for each split of a corpus."""
        inputs = (dataset_input(corpus, split, file) for split, file in splits.items())
        self.client.log_inputs(run_id, [*inputs])

    def log_use(self, run_id: str, model_id: str) -> None:
        """Record a logged model as an input of a run."""
        self.client.log_inputs(run_id, models=[LoggedModelInput(model_id)])

    def log_file(self, run_id: str, path: Path) -> None:
        """Log a file as an artifact under its name."""
        self.client.require_no_links(run_id, [path.name])
        self.client.log_artifact(run_id, str(path))
        self._log_digests(run_id, {path.name: sha256_of(path)})

    def log_text(self, run_id: str, text: str, file: str) -> None:
        """Log a text as an artifact."""
        self.client.require_no_links(run_id, [file])
        self.client.log_text(run_id, text, file)
        self._log_digests(run_id, {file: hashlib.sha256(text.encode()).hexdigest()})

    def log_files(self, run_id: str, folder: Path, name: str) -> None:
        """Log the files of a folder as artifacts in a folder of that name."""
        files = [path for path in folder.rglob("*") if path.is_file()]
        digests = {f"{name}/{path.relative_to(folder)}": sha256_of(path) for path in files}
        self.client.require_no_links(run_id, digests)
        self.client.log_artifacts(run_id, str(folder), name)
        self._log_digests(run_id, digests)

    def _log_digests(self, run_id: str, digests: Mapping[str, str]) -> None:
        self.tag(run_id, {ARTIFACT_TAG.format(file): value for file, value in digests.items()})

    def damaged_artifact(self, run: Run) -> str | None:
        """What is wrong with the first artifact of a run that is not as it was logged, if any."""
        prefix = ARTIFACT_TAG.format("")
        for tag, digest in sorted(run.data.tags.items()):
            if not tag.startswith(prefix):
                continue
            file = tag.removeprefix(prefix)
            with scratch_folder() as scratch:
                try:
                    copy = self.client.download_artifacts(run.info.run_id, file, scratch)
                except (MlflowException, FileNotFoundError, NotADirectoryError):
                    return f"{file} is missing"
                if not copy.is_file():
                    return f"{file} is missing"
                found = sha256_of(copy)
            if found != digest:
                return f"{file} is not what was logged"
        return None

    def read_text(self, run_id: str, file: str) -> str:
        """Read a text artifact.

        Raises DamagedError if it is not what was logged, or if nothing in the store says what was,
        but for runs of older stores.
        """
        tags = self.client.get_run(run_id).data.tags
        digest = tags.get(ARTIFACT_TAG.format(file))
        if digest is None and schema_version(tags) > 0:
            raise DamagedError(f"run {run_id}: {file}: the tracking store has no digest of it")
        with scratch_folder() as scratch:
            try:
                path = self.client.download_artifacts(run_id, file, scratch)
            except (MlflowException, OSError):
                raise DamagedError(f"run {run_id}: {file} is missing") from None
            if not path.is_file():
                raise DamagedError(f"run {run_id}: {file} is no file")
            if digest is not None and sha256_of(path) != digest:
                raise DamagedError(f"run {run_id}: {file} is not what was logged")
            return path.read_text(encoding="utf-8")


def _experiment(client: RetryingClient, name: str, location: str | None) -> Experiment:
    """The experiment of that name, which is made unless another command, or an earlier call whose
    answer was lost, has made it."""
    if found := client.get_experiment_by_name(name):
        return found
    try:
        client.create_experiment(name, location, tags=EXPERIMENT_KIND)
    except MlflowException as error:
        if error.error_code != EXISTS:
            raise
    return client.get_experiment_by_name(name)
