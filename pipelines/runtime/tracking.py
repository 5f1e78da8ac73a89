"""The tracking store: MLflow's experiments, runs, artifacts and logged models.

A run is found by what it is (tags `dca.kind` and `dca.key`), never by its name or by the order of
events, so that a command that was killed finds its own work again. Whoever needs the store while it
is locked or away waits for it; histories are written behind the back of the training.
"""

import getpass
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import mlflow
import requests
import tenacity
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from sqlalchemy.exc import SQLAlchemyError

from pipelines.runtime.errors import ConfigError, PipelineError
from pipelines.runtime.plain_yaml import flatten
from pipelines.runtime.storage import File, Folder, size_of, uri_of

if TYPE_CHECKING:
    from pipelines.runtime.tensorboard import EventFiles  # which takes seconds: it imports torch

PROBE_SECONDS = 5
PATIENCE_SECONDS = 3600
"""How long a store may be away before a command gives up; what it knows is then in checkpoints."""
MOST_SECONDS_BETWEEN_TRIES = 10
ROWS_PER_BATCH = 100
"""Rows of a history in one request, whole ones; a request takes at most 1,000 metrics."""
STEP_METRIC = "train_bits_per_byte"
"""A metric that every row of a history has: its steps are the rows already stored."""
COMMIT = "DCA_GPT_COMMIT"
"""Names the commit where there is no .git to ask, as in a container or a Ray job."""
PACKAGES = ("torch", "ray", "mlflow", "optuna", "safetensors", "numpy")

MOST_PARAMS = 100
"""What MLflow takes in one request."""
NOTE_TAG = "mlflow.note.content"
"""Where MLflow keeps the description of a run and of an experiment."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Of an experiment: its page is about training runs and models."""
RESULT_METRIC = "val_bits_per_byte"
"""What a comparison of runs begins with: MLflow's pages show first what was stored first."""
DIGEST_TAG = "dca.sha256"
"""Of a logged model: the digest of its list of digests, which its own files cannot vouch for."""

Row = Mapping[str, float]

__all__ = ["Run"]  # a name that others need for their types


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else mlflow.db in the current folder, where a bare `mlflow ui` looks."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    return uri


def connect(uri: str) -> MlflowClient:
    """A client of a store that answers. Raises ConfigError in seconds if it does not."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="mlflow")
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # ours know what they repeat
    check(uri)
    _give_up.clear()
    mlflow.set_tracking_uri(uri)
    try:
        client = MlflowClient(uri, uri)
        client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(f"MLFLOW_TRACKING_URI={uri}: {reason}") from None
    return cast(MlflowClient, _PatientClient(client))


def check(uri: str) -> None:
    """Raise ConfigError in seconds if no store can answer there; writes nothing."""
    if uri.startswith(("http://", "https://")):
        _probe(uri)
    elif uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ConfigError(f"MLFLOW_TRACKING_URI={uri}: {path} cannot be written")
        if path.is_file() and _start_of(path) not in (b"", b"SQLite"):
            raise ConfigError(f"MLFLOW_TRACKING_URI={uri}: {path} is no SQLite database")
    else:
        raise ConfigError(f"MLFLOW_TRACKING_URI={uri}: expected sqlite:///FILE or http(s)://HOST")


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(6)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"storage: {path} cannot be made a folder: {error.strerror}") from None


def _lock(uri: str) -> FileLock:
    """One process of this machine at a time; outside the folders that users look into."""
    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"dca-gpt-{getpass.getuser()}-{name}.lock")


def _probe(uri: str) -> None:
    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=PROBE_SECONDS).raise_for_status()
    except requests.RequestException as error:
        reason = type(error).__name__
        raise ConfigError(
            f"MLFLOW_TRACKING_URI={uri}: no tracking server answers ({reason})"
        ) from None


_give_up = threading.Event()
"""Set when waiting is over: patience has run out, or the command ends."""


def may_pass(error: BaseException) -> bool:
    """A locked database, a server that is away or overloaded; not one that says no, nor a full
    disk, which MLflow calls unavailable too."""
    if not isinstance(error, MlflowException):
        return False
    if "sqlite3." in str(error):
        return "database is locked" in str(error)
    unanswered = error.error_code == "INTERNAL_ERROR" and "API request to" in str(error)
    return unanswered or error.get_http_status_code() in (429, 503, 504)


def _tell(state: tenacity.RetryCallState) -> None:
    if state.attempt_number == 1:
        logging.getLogger(__name__).warning("MLflow: %s; trying again", _outcome(state))


def _outcome(state: tenacity.RetryCallState) -> str:
    error = state.outcome and state.outcome.exception()
    return str(error).splitlines()[0][:200]


def _gave_up(state: tenacity.RetryCallState) -> NoReturn:
    _give_up.set()
    raise PipelineError(
        f"MLflow: {_outcome(state)}; what it does not have is in the checkpoints: "
        "run the same command again"
    )


patiently = tenacity.retry(
    retry=tenacity.retry_if_exception(may_pass),
    wait=tenacity.wait_random_exponential(multiplier=0.5, max=MOST_SECONDS_BETWEEN_TRIES),
    stop=tenacity.stop_after_delay(PATIENCE_SECONDS) | tenacity.stop_when_event_set(_give_up),
    sleep=tenacity.sleep_using_event(_give_up),
    before_sleep=_tell,
    retry_error_callback=_gave_up,
)
"""Repeats, with growing pauses, what a store that is locked or away could not do. The calls must be
safe to repeat: an answer may have been lost after the work was done. Raises PipelineError when its
patience, or that of another call, has run out."""


class _PatientClient:
    """An MLflow client whose calls are repeated. What creates something is not: whoever calls that
    can tell whether it happened."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return method if name.startswith("create_") else patiently(method)


@contextmanager
def alone(work: str, *, wait_seconds: float = 0) -> Iterator[None]:
    """Keep other processes of this machine from the same work on the same store.

    Raises PipelineError if one is at it, and still is after the wait.
    """
    lock = _lock(f"{tracking_uri()} {work}")
    try:
        held = lock.acquire(timeout=wait_seconds)
    except Timeout:
        process = Path(lock.lock_file).read_text().strip()
        raise PipelineError(
            f"{work}: process {process} is at work on it; wait for it or stop it, "
            "then run the same command again"
        ) from None
    with held:
        Path(lock.lock_file).write_text(f"{os.getpid()}\n")
        yield


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
        check(uri)
        if isinstance(storage, Path):
            artifacts = storage / "artifacts"
            if create:
                _make_folder(storage)
        else:
            artifacts = Path(uri.removeprefix("sqlite:///")).with_name("mlartifacts")
        location = artifacts.as_uri() if local else None
        with _lock(uri):  # MLflow's own first use of a database races
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

        @patiently
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
        entities = [Param(key, plain(value)) for key, value in flatten(params)]
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
        self.client.log_batch(run_id, metrics=list(_metrics([row], **of)))

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
        _give_up.set()
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


class Writer:
    """Makes, writes and ends runs, in order, on a thread of its own; every row once.

    Rows are told apart by their step, so that a resumed run may replay its history.
    """

    def __init__(self, store: Store, events: "EventFiles | None" = None) -> None:
        """`events` get the same rows."""
        self._store, self._events = store, events
        self._names: dict[str, str] = {}
        """Of the runs' event files: told apart by the start of their ids."""
        self._seen: dict[str, set[int]] = {}
        self._torn: set[str] = set()
        """Runs with rows that could not be stored: left unfinished, so that they are replayed."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
        self._pending: list[Future[Any]] = []

    def open(self, make: Callable[[], str]) -> Future[str]:
        """Queue the making, or taking up, of a run; tells its id once it is stored."""
        return self._submit(make)

    def write(self, run_id: str, rows: Iterable[Row]) -> None:
        """Queue rows; returns at once."""
        self._submit(self._write, run_id, list(rows))

    def finish(
        self, run_id: str, status: str, tags: Mapping[str, str], summary: Row | None = None
    ) -> None:
        """Queue the end of a run, behind its rows, with tags and metrics that sum it up.

        `summary` has `step` and `time`: told twice, it is stored once.
        """
        self._submit(self._finish, run_id, status, dict(tags), summary)

    def then(self, work: Callable[[], None], run_id: str = "") -> None:
        """Queue work behind what was told before; left out if some of the run is not stored."""
        self._submit(lambda: None if run_id in self._torn else work())

    def close(self) -> None:
        """Wait until everything is stored. Raises PipelineError if something could not be.

        A second Ctrl-C ends the waiting for a store that is away.
        """
        try:
            self._thread.shutdown(wait=True)
        except KeyboardInterrupt:
            _give_up.set()
            raise
        if self._events:
            self._events.close()
        for future in self._pending:
            if isinstance(error := future.exception(), PipelineError):
                raise error
            if error:
                raise PipelineError(f"MLflow did not take a run's history: {error}") from error

    def _submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        self._pending = [f for f in self._pending if not f.done() or f.exception()]
        self._pending.append(self._thread.submit(work, *args))
        return self._pending[-1]

    def _write(self, run_id: str, rows: list[Row]) -> None:
        if run_id in self._torn:
            return
        try:
            self._store_rows(run_id, rows)
            if self._events:
                self._events.write(self._name(run_id), rows)
        except Exception:
            self._torn.add(run_id)
            raise

    def _name(self, run_id: str) -> str:
        if run_id not in self._names:
            name = self._store.client.get_run(run_id).info.run_name
            self._names[run_id] = f"{name} {run_id[:8]}"
        return self._names[run_id]

    def _store_rows(self, run_id: str, rows: list[Row]) -> None:
        client = self._store.client
        if run_id not in self._seen:
            self._seen[run_id] = set(self._store.history(run_id, STEP_METRIC))
        seen = self._seen[run_id]
        new = [row for row in rows if int(row["step"]) not in seen]
        for first in range(0, len(new), ROWS_PER_BATCH):
            batch = new[first : first + ROWS_PER_BATCH]
            metrics = sorted(_metrics(batch), key=lambda metric: metric.key != RESULT_METRIC)
            client.log_batch(run_id, metrics=metrics)
            seen.update(int(row["step"]) for row in batch)

    def _finish(self, run_id: str, status: str, tags: dict[str, str], summary: Row | None) -> None:
        if run_id in self._torn:
            return
        self._store.client.log_batch(
            run_id,
            metrics=list(_metrics([summary] if summary else [])),
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        self._store.end(run_id, status)  # last: a run that ended has its state
        self._seen.pop(run_id, None)
        if self._events and run_id in self._names:
            self._events.end(self._names.pop(run_id))


def _metrics(rows: Iterable[Row], **of: str) -> Iterator[Metric]:
    """At the `time` of their row, in seconds since 1970: MLflow stores equal points once."""
    for row in rows:
        milliseconds = int(1000 * row["time"])
        for key, value in row.items():
            if key not in ("step", "time"):
                yield Metric(key, value, milliseconds, int(row["step"]), **of)


@patiently
def log_model(
    run_id: str,
    *,
    code: Path,
    code_paths: list[Path],
    artifacts: Mapping[str, Path],
    signature: ModelSignature,
    requirements: list[str],
    params: Mapping[str, Any],
    example: Any,
    digest: str,
) -> str:
    """Log a pyfunc model from code under a run, once; returns its models:/ URI."""
    if found := logged_model(run_id):
        return f"models:/{found}"
    with mlflow.start_run(run_id=run_id):
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(code),
            code_paths=[str(path) for path in code_paths],
            artifacts={name: str(path) for name, path in artifacts.items()},
            signature=signature,
            pip_requirements=requirements,
            params={key: plain(value) for key, value in flatten(params)},
            input_example=example,
            tags={DIGEST_TAG: digest},
        )
    return f"models:/{info.model_id}"


@patiently
def logged_model(run_id: str) -> str | None:
    """The id of the model that a run has logged, if it has."""
    run = mlflow.get_run(run_id)
    for output in run.outputs.model_outputs if run.outputs else []:
        model = mlflow.get_logged_model(output.model_id)
        if str(model.status) == "READY":
            return str(model.model_id)
    return None


@patiently
def model_exists(uri: str) -> bool:
    """Whether a logged model and its files are still there."""
    try:
        mlflow.models.get_model_info(uri)
    except (MlflowException, OSError) as error:
        if may_pass(error):
            raise
        return False
    return True


def connect_existing() -> MlflowClient:
    """A client of the store as it is; makes none. Raises ConfigError if there is none."""
    uri = tracking_uri()
    database = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not database.exists():
        raise ConfigError(f"MLFLOW_TRACKING_URI={uri}: there is no {database}")
    with _lock(uri):
        return connect(uri)


@patiently
def download_model(model_id: str, folder: Path) -> tuple[Path, str | None]:
    """Copy a logged model's files into a folder; where they lie, and the digest told on logging.

    Raises PipelineError if they are gone.
    """
    try:
        digest = mlflow.get_logged_model(model_id).tags.get(DIGEST_TAG)
        uri = f"models:/{model_id}"
        copy = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder))
    except (MlflowException, OSError) as error:
        if may_pass(error):
            raise
        raise PipelineError(f"models:/{model_id}: {str(error).splitlines()[0]}") from None
    return Path(copy), digest


def load_pyfunc(folder: Path) -> Any:
    """The Python object behind the pyfunc model in a folder. Its code is executed."""
    return mlflow.pyfunc.load_model(str(folder)).unwrap_python_model()


@patiently
def keep_with_model(model_id: str, file: str, data: Any) -> None:
    """Store JSON among the files of a logged model, where whoever downloads it finds it."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=1))
        MlflowClient().log_model_artifacts(model_id, scratch)


@patiently
def read_with_model(model_id: str, file: str) -> Any:
    """JSON among the files of a logged model; None if there is none, or a torn one."""
    try:
        location = mlflow.get_logged_model(model_id).artifact_location
        return json.loads(mlflow.artifacts.load_text(f"{location}/{file}"))
    except (MlflowException, OSError, ValueError) as error:
        if may_pass(error):
            raise
        return None


@cache
def provenance() -> dict[str, str]:
    """Tags that say where a run's code and numbers come from, asked for once."""
    versions = {f"version.{name}": importlib.metadata.version(name) for name in PACKAGES}
    git = _git("rev-parse", "HEAD")
    named = git or os.environ.get(COMMIT)
    commit = {"mlflow.source.git.commit": named} if named else {}
    dirty = {"git.dirty": str(bool(_git("status", "--porcelain"))).lower()} if git else {}
    return {
        "mlflow.user": getpass.getuser(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": "pipelines",
        "version.python": platform.python_version(),
        **versions,
        **commit,
        **dirty,
    }


def _git(*args: str) -> str:
    here = Path(__file__).parent
    try:
        result = subprocess.run(
            ["git", *args], cwd=here, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def plain(value: Any) -> str:
    """A parameter's value as MLflow stores it."""
    return value if isinstance(value, str) else json.dumps(value)
