"""Where the tracking store is: MLflow's URI of a database file or of a server.

As in every URI, `%20` stands for a space in the path of a file, and options follow a `?`: MLflow
decodes the path, so that `%` and `?` in the name of a folder must be encoded.
"""

import logging
import os
import re
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipelines.compat.mlflow import takes_mlruns
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.secrets import redact
from pipelines.console.text import is_text, one_line
from pipelines.storage.private import make_private
from pipelines.storage.remote import Folder

SQLITE = "sqlite:///"
MEMORY = ":memory:"
ARTIFACTS = "mlartifacts"
"""Name of the folder of artifacts beside a database, if the storage is a URI."""
SERVER = re.compile(r"\s*(https?)(://[^\s?#]+)(\S*)\s*", re.IGNORECASE)
"""Its scheme and address, with what may stand around it by mistake."""
OF_MLFLOW = "Default"
"""The experiment that MLflow makes itself in every database, with a folder of its own choice."""


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else mlflow.db in the current folder, where a bare `mlflow ui` looks,
    unless it finds an older store in ./mlruns.

    Raises ConfigError for one that is not UTF-8, or has a zero byte, of which no system makes a
    path, and for a server's with more than its address, as a browser shows it.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return database_uri(Path("mlflow.db"))
    if "%00" in uri or not is_text(uri):
        message = "expected a URI in UTF-8, without a zero byte"
        raise ConfigError(Problem(message, f"MLFLOW_TRACKING_URI={one_line(uri)}"))
    server = SERVER.fullmatch(uri)
    if server and (address := f"{server[1].lower()}{server[2]}") != uri:
        message = "expected only the address of a server"
        if "@" in server[3]:  # the rest of a password, of which nothing may be shown
            message, address = "expected # and ? of a password as %23 and %3F", ""
        key = f"MLFLOW_TRACKING_URI={one_line(uri)}"
        raise ConfigError(Problem(message, key, nearest=address))
    database = database_file(uri)
    return database_uri(database) + "".join(uri.partition("?")[1:]) if database else uri


def shown_tracking_uri() -> str:
    """The same for people and files: without the password and tokens that it may contain."""
    return redact(tracking_uri())


def taken_by_itself() -> bool:
    """Whether the commands and those of MLflow take this store, called here, without its URI."""
    return tracking_uri() == database_uri(Path("mlflow.db")) and not takes_mlruns()


def export_lines() -> list[str]:
    """What a shell needs before commands that are to take this store: its URI, or nothing; nothing
    either if it has a password, which is not shown: this shell has it."""
    if taken_by_itself() or shown_tracking_uri() != tracking_uri():
        return []
    return [f"export MLFLOW_TRACKING_URI={shlex.quote(shown_tracking_uri())}"]


def database_file(uri: str) -> Path | None:
    """The SQLite file of a store; None of a server."""
    if not uri.startswith(SQLITE):
        return None
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0]))


def file_problem(path: Path) -> str | None:
    """Why a path cannot be that of a database; None if it can."""
    folder = Path(os.path.realpath(path)).parent
    if path.name == MEMORY:
        return "a database in memory ends with the command; expected sqlite:///FILE"
    if path.is_dir():
        return f"{path} is a folder; expected a file, which is made if there is none"
    if not folder.is_dir():
        return f"{path} cannot be written: there is no folder {folder}"
    if path.exists() and not path.is_file():
        return f"{path} is not a file"
    if not os.access(folder, os.W_OK | os.X_OK):  # SQLite keeps a journal beside it
        return f"{path} cannot be written: its folder cannot"
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        return f"{path} cannot be written"
    return None


def nothing_stored() -> bool:
    """Whether the tracking store is a database that does not exist yet."""
    database = database_file(tracking_uri())
    return database is not None and not database.exists()


def database_uri(path: Path) -> str:
    """The URI of a SQLite file, by its absolute path."""
    return SQLITE + str(path.absolute()).replace("%", "%25").replace("?", "%3F")


def local_path(uri: str) -> Path | None:
    """The path of a file URI or of a path; None for any other URI."""
    if uri.startswith("file:"):
        return Path(unquote(urlsplit(uri).path))
    if re.match(r"[\w+.-]+:/", uri):  # a server's own: mlflow-artifacts:/1/models/...
        return None
    return Path(unquote(uri))  # MLflow decodes paths too


def deleted_experiment(name: str, experiment_id: str) -> ConfigError:
    """MLflow keeps a deleted experiment, and its name, until `mlflow gc`."""
    uri, command = tracking_uri(), f"mlflow experiments restore --experiment-id {experiment_id}"
    if database_file(uri):  # that of a server is in the environment, with its password
        command = f"MLFLOW_TRACKING_URI={shlex.quote(uri)} {command}"
    message = (
        f"{name} was deleted in MLflow; to go on with it, restore it: {command} ; "
        "else give another experiment"
    )
    return ConfigError(Problem(message, "experiment"))


def require_artifacts(
    experiment: str, recorded: str, storage: Folder | None, *, warn: bool
) -> None:
    """Raise ConfigError if the artifacts of an experiment were in a storage that is gone, as after
    its folder was moved: MLflow keeps the path, and would begin anew there.

    Args:
        experiment: Its name.
        recorded: The URI of the folder that the tracking store has for its artifacts.
        storage: The present one; None if it does not matter.
        warn: Whether to warn if artifacts go elsewhere all the same.

    """
    before, database = local_path(recorded), database_file(tracking_uri())
    if before is None or database is None or storage is None:
        return
    now = storage / "artifacts" if isinstance(storage, Path) else database.with_name(ARTIFACTS)
    if os.path.realpath(before) == os.path.realpath(now):
        return
    if not before.parent.exists():
        if experiment == OF_MLFLOW:
            message = f"{experiment} is MLflow's own experiment; expected another name"
            raise ConfigError(Problem(message, "experiment"))
        old, new = before.parent, str(now.parent) if now.exists() else "STORAGE"
        message = (
            f"the artifacts of {experiment} were in {before}, which is gone; if it was moved, a "
            f"link brings them back: {_link(old, new)} ; else give another experiment"
        )
        raise ConfigError(Problem(message, "experiment"))
    if warn:
        logging.getLogger(__name__).warning(
            "%s: its artifacts go to %s, where they were at first, and not to %s",
            *(experiment, before, now),
        )


def gone_from(location: str | Path) -> str:
    """That the files of a logged model are gone, and what to do if its whole storage is."""
    path, advice = local_path(str(location)), ""
    if path is not None and len(path.parents) > 3 and not (storage := path.parents[3]).exists():
        advice = f"; if {storage} was moved, link it to there: {_link(storage, 'STORAGE')}"
    return f"its files are gone from {location}{advice}"


def _link(old: Path, new: str) -> str:
    """The command that makes a link in the place of a folder that was moved."""
    link = f"ln -s {shlex.quote(new)} {shlex.quote(str(old))}"
    return link if old.parent.exists() else f"mkdir -p {shlex.quote(str(old.parent))} && {link}"


def make_storage(path: Path) -> None:
    """Make the folder of the storage. Raises ConfigError if it cannot be made or written."""
    require_folders(path)
    try:
        make_private(path)
    except OSError as error:
        message = f"{path}: expected a folder that can be written; to make it: {error.strerror}"
        raise ConfigError(Problem(message, "storage")) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(Problem(f"{path} cannot be written", "storage"))


def require_folders(path: Path) -> None:
    """Raise ConfigError if the storage cannot be made, as something of its path is no folder."""
    existing = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if not os.path.isdir(existing):  # noqa: PTH112 - no error for a link into a closed folder
        other = f"; {existing} is none" if existing != path else ", which this is not"
        if existing.is_symlink() and not existing.exists():
            other = f"; {existing} is a link to {existing.readlink()}, which is not there"
        message = f"{path}: expected a folder that can be written{other}"
        raise ConfigError(Problem(message, "storage"))


def artifact_location(storage: Folder, database: Path) -> str:
    """The URI of the folder for artifacts of a SQLite file's experiments."""
    if isinstance(storage, Path):
        return (storage / "artifacts").as_uri()
    folder = database.with_name(ARTIFACTS)
    make_private(folder)
    return folder.as_uri()
