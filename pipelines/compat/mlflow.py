"""What MLflow 3 calls things, where no public name of its Python API stands for them.

Imports MLflow only where an error is judged: those who need a name need not load it.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from sqlalchemy import Engine

RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"
"""Statuses of a run, which the client takes and returns as texts."""

MLFLOW_PREFIX = "mlflow."
"""How the names of MLflow's own tags begin."""
NOTE_TAG = "mlflow.note.content"
"""The description of a run or of an experiment; the client has no method to set it."""
PARENT_RUN_TAG = "mlflow.parentRunId"
"""The run under which the UI shows another; the client cannot create a child run otherwise."""
USER_TAG = "mlflow.user"
"""Who started a run: only the fluent API, which keeps state of the process, sets it."""
SOURCE_NAME_TAG, SOURCE_TYPE_TAG = "mlflow.source.name", "mlflow.source.type"
"""What started a run, as the UI's column Source shows it; set by the fluent API only."""
LOCAL_SOURCE = "LOCAL"
"""The source type of a program that no platform of MLflow's started."""
COMMIT_TAG = "mlflow.source.git.commit"
"""The commit of a run's code, which the UI's column Version shows; set by the fluent API only."""
DATASET_CONTEXT_TAG = "mlflow.data.context"
"""Of a dataset that a run read: what for. The UI shows it beside the dataset's name."""
MODEL_VERSIONS_TAG = "mlflow.modelVersions"
"""Of a logged model, JSON: its registered versions, which the UI shows on the model's page. Only
the fluent API's way to register keeps it, and that cannot be repeated safely."""
EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment: the UI shows its pages of training runs and models, not those of agents."""

MAX_TAG_CHARACTERS = 8000
"""Of a tag's value: a longer one is cut without an error, which would spoil JSON."""
MAX_PARAM_CHARACTERS = 6000
"""Of a parameter's value: a longer one is cut without an error, too."""

MODEL_ID, RUN_ID = r"m-[0-9a-f]{32}", r"[0-9a-f]{32}"
"""Patterns of ids: they distinguish a logged model and a run from a registered model's name."""

MODEL_FILE = "MLmodel"
"""Name of the YAML file that describes a logged model, beside its other files."""
REGISTERED_FILE = "registered_model_meta"
"""Name of a file that MLflow writes into a model's folder when it is loaded by a version's name,
also into that of a local artifact store."""
SOURCES = "code"
"""Name of the folder of the sources that a model from code brings."""
SKIP_TYPE_HINTS = "_skip_type_hint_validation"
"""Attribute of a PythonModel without type hints on `predict`: without it MLflow warns. The packaged
model, which imports nothing of this project, repeats the name."""

MISSING, EXISTS, INVALID = (
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_PARAMETER_VALUE",
)
"""Values of MlflowException.error_code, which has no types of its own for them."""

TELEMETRY = {"MLFLOW_DISABLE_TELEMETRY": "true"}
"""As it is imported, MLflow would write a number of the user into the home folder, and send with it
what is called."""
LOGGER = "mlflow"
"""Prints notes of a database's migration and of every model that is logged, on standard error."""
ENVIRONMENT = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # models are data: no pickle is read
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # progress is printed by the commands
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for results and JSON
}
"""Settings that MLflow reads from the environment at each use, and nowhere else."""
IMPATIENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # in place of 120
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "10",
}
"""Seconds of a command that ends."""
DEFAULT_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # calls are repeated by the client that wraps MLflow's
}
"""The same, unless the user has set them."""

LEFT_OUT = (
    *("MLFLOW_ACTIVE_MODEL_ID", "_MLFLOW_ACTIVE_MODEL_ID"),  # the model that metrics are those of
    "MLFLOW_ENABLE_ASYNC_LOGGING",  # rows could be lost, or come behind what follows them
    "MLFLOW_TRUNCATE_LONG_VALUES",  # a long value would be an error
    "MLFLOW_LOG_MODEL_COMPRESSION",  # the files of a package are read in place
)
"""Settings of a user's own programs, which would change what a command stores."""
WARNINGS_MODULE = "mlflow"
"""The modules whose warnings are ignored, hints for interactive use: a pattern as `warnings` takes
it. MLflow's own switches change more of the process."""

ARTIFACT_ROOT = "_MLFLOW_SERVER_ARTIFACT_ROOT"
"""Environment variable of the folder for the artifacts of a database's default experiment."""
TABLE, COLUMNS = "experiments", {"experiment_id", "name", "artifact_location", "lifecycle_stage"}
"""A table that every database of MLflow has, and columns of it that no version lacks."""
TABLES = {TABLE, "runs", "metrics", "latest_metrics", "params", "tags", "model_versions"}
"""Tables that a database of MLflow has since its version 1."""
VERSION_TABLE = "alembic_version"
"""With the version of the tables, in databases of MLflow, Optuna and many others."""


def all_pages(search: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
    """All that a search finds: each of its answers is a page, of 100 registered models or 1,000
    experiments or runs."""
    found: list[Any] = []
    token = None
    while True:
        page = search(*args, page_token=token, **kwargs)
        found.extend(page)
        token = page.token
        if not token:
            return found


def skip_prompt_checks(client: Any) -> None:
    """Keep a client from reading a registered model, with its versions, before each of its tags and
    aliases, to see that it is no prompt: half of all requests to the registry. This project's
    models are found by `get_registered_model`, which refuses prompts."""
    client._raise_if_prompt = lambda name: None


@contextmanager
def encoded_artifact_root() -> Iterator[None]:
    """Let MLflow make a database's default experiment in folders of any name, in the time of a
    block: it puts the path of ./mlruns into its URI and into SQL as it is. There is no setting for
    a client; the variable is also how its server's processes know that they are of one."""
    os.environ[ARTIFACT_ROOT] = Path("mlruns").absolute().as_uri()
    try:
        yield
    finally:
        del os.environ[ARTIFACT_ROOT]


def takes_mlruns() -> bool:
    """Whether MLflow, without a URI, takes an earlier one's files in ./mlruns, not ./mlflow.db."""
    from mlflow.tracking._tracking_service.utils import _has_existing_mlruns_data

    return bool(_has_existing_mlruns_data())


def make_tables(path: Path) -> None:
    """Make MLflow's tables in a new file of this process, which nothing else reads yet.

    MLflow's migrations of an empty database commit a hundred times and wait for the disk in each:
    seconds, in which a command that is killed leaves half a database. Raises as `store_errors`.
    """
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy import URL, create_engine, event

    engine = create_engine(URL.create("sqlite", database=str(path)))  # a text would be decoded
    event.listen(engine, "connect", lambda made, _: made.execute("PRAGMA synchronous=OFF"))
    try:
        _initialize_tables(engine)
    finally:
        engine.dispose()


def schema_problem(engine: "Engine") -> str | None:
    """Why a database is none that this MLflow can use, or make its own; None if it can.

    MLflow writes its tables into any database, and takes one of a later MLflow for an old one.
    """
    from sqlalchemy import inspect, text

    with engine.connect() as connection:
        inspector, versions = inspect(connection), list[str]()
        tables = sorted({*inspector.get_table_names()} - {VERSION_TABLE})
        if inspector.has_table(VERSION_TABLE):
            versions = [*connection.scalars(text(f"select version_num from {VERSION_TABLE}"))]
        columns = inspector.get_columns(TABLE) if TABLE in tables else []
        views = inspector.get_view_names()
    unknown = [version for version in versions if not _is_version(str(version))]
    if not {column["name"] for column in columns} >= COLUMNS:
        if named := [*tables, *views]:
            return f"is the database of another program, with the tables {', '.join(named[:3])}"
        other = "is the database of another program, whose version is"
        return f"{other} {unknown[0]}" if unknown else None
    if lacking := sorted(TABLES.difference(tables)):
        return f"is no whole database of MLflow: it has no table {lacking[0]}"
    if not versions:
        return f"is no whole database of MLflow: its version is not in {VERSION_TABLE}"
    if unknown:
        found = f"has the tables of a later MLflow than {metadata.version('mlflow')}"
        return f"{found}, or of another program: their version is {unknown[0]}"
    return None


def _is_version(name: str) -> bool:
    """Whether this MLflow has a migration to a version, with which the name of a file begins."""
    from mlflow.store import db_migrations

    folder = Path(next(iter(db_migrations.__path__))) / "versions"
    return any(path.name.partition("_")[0] == name for path in folder.glob("*.py"))


def decode_database_folders() -> None:
    """Let MLflow make a database's folder by the name that it has: by that of the URI, in which a
    `%` is encoded, it would make an empty one beside it."""
    from mlflow.store.db import utils

    utils._make_parent_dirs_if_sqlite = _make_parents


def _make_parents(uri: str) -> None:
    path = unquote(uri.removeprefix("sqlite:///").partition("?")[0])
    if uri.startswith("sqlite:///") and path and path != ":memory:":
        Path(path).parent.mkdir(parents=True, exist_ok=True)


def set_environment() -> None:
    """Set the environment variables that every connection needs, and unset what it must not read.

    A command puts the user's back at its end."""
    os.environ.update(ENVIRONMENT)
    for name in LEFT_OUT:
        os.environ.pop(name, None)
    for name, value in DEFAULT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def unreadable_variables() -> dict[str, str]:
    """The environment variables of MLflow that it cannot read, each with its reason."""
    from mlflow import environment_variables as names

    found = {}
    for variable in vars(names).values():
        if isinstance(variable, names._EnvironmentVariable) and variable.is_set():
            try:
                variable.get()
            except ValueError as error:
                found[str(variable.name)] = str(error)
    return found


def ignore_warnings() -> None:
    """Add a filter to those of the process that ignores MLflow's warnings."""
    warnings.filterwarnings("ignore", module=WARNINGS_MODULE)


def is_filter(entry: tuple[Any, ...]) -> bool:
    """Whether an entry of `warnings.filters` is of `ignore_warnings`: the fourth part is the
    compiled pattern of a module, or None."""
    return getattr(entry[3], "pattern", entry[3]) == WARNINGS_MODULE


def run_page(experiment_id: str, run_id: str) -> str:
    """The address of a run's page within the UI; MLflow has no function that returns it."""
    return f"#/experiments/{experiment_id}/runs/{run_id}"


def model_page(name: str) -> str:
    """The address of a registered model's page within the UI."""
    return f"#/models/{name}"
