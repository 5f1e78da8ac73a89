"""Artifacts of MLflow: reading one of a run, and why the files of a store cannot be read.

Used by the client. MLflow puts the errors of all files of a download into one text.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.compat.mlflow import MISSING

_FAILED_FILES = re.compile(r"##### File [^\n]* #####\n([^\n]*)")
"""In the error of a download: the reason of each file that was not read."""
_START = re.compile(r"\[Errno (\d+)\]|(40[134]|410)\b")
"""The number at the beginning of a text, of the system's error or of a server's answer: behind it
come a path and an address, in which any word may stand."""
_SYSTEM = re.compile(r"\[Errno (\d+)\] ([^:]*)(?:: ['\"](.*)['\"])?$")
"""The text of an error of the system, with or without a file."""
_ABSENT = {"2", "20", "404", "410"}
"""Such numbers of a file that is not there, or lies below one that is no folder."""
_MISSING = re.compile(
    r"(?i)\[Errno (2|20)\]|\b(404|410) (Client Error|Not Found)|\((404|NoSuch\w+)\)|\b404 GET\b"
    r"|no such (file|artifact|object)|(does not|doesn't) exist|BlobNotFound"
)
"""How the stores of artifacts say anywhere in it that there is no such file."""
_REFUSED = re.compile(
    r"\(40[13]\)|error code 40[13]\b|\b40[13] (Client Error|GET)\b"
    r"|InvalidAccessKey|ErrorCode:\w*Account|NoSuchBucket|BucketNotFound"
)
"""How they say that they refuse, in part with the same words; Azure names its error at the end."""
_MISSING_STATUSES = (404, 410)


def read_artifact(uri: str, file: str, folder: Path, tracking_uri: str) -> Path:
    """Copy an artifact, by its place below the artifacts of a run, into a folder.

    MlflowClient.download_artifacts raises that the path is wrong, whatever the reason is. Raises
    OSError for an error of the library of an object store.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with _own_errors():
        store = get_artifact_repository(uri, tracking_uri=tracking_uri, registry_uri=tracking_uri)
        return Path(store.download_artifacts(file, dst_path=str(folder)))


def copy_artifacts(uri: str, folder: Path, tracking_uri: str) -> Path:
    """Copy an artifact, a file or a folder, into a folder. Raises as `read_artifact`."""
    import mlflow

    uris = {"tracking_uri": tracking_uri, "registry_uri": tracking_uri}
    with _own_errors():
        copy = mlflow.artifacts.download_artifacts(uri, dst_path=str(folder), **uris)
        return Path(copy)


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise OSError for what MLflow passes on: before it reads files it lists them, and of that
    has the errors of boto3 and the like."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError, ValueError):
        raise
    except Exception as error:
        kind = FileNotFoundError if _is_missing(str(error)) else OSError
        raise kind(str(error)) from error


def unreadable(error: BaseException) -> str | None:
    """Why files cannot be read or written that are not missing, as of a server that refuses or a
    full disk; None for another error."""
    if isinstance(error, OSError):
        return None if _is_missing_file(error) else str(error)
    reasons = _FAILED_FILES.findall(str(error))
    return next((reason for reason in reasons if not _is_missing(reason)), None)


def failed_copy(error: BaseException) -> OSError | None:
    """The system's error in that of a download, as of the full disk that its copy is made on; None
    of another error."""
    texts = map(_SYSTEM.match, _FAILED_FILES.findall(str(error)))
    found = next(filter(None, texts), None)
    return found and OSError(int(found[1]), found[2], found[3])


def gone(error: BaseException) -> str | None:
    """The text of an error of a file that is not there, or of what it belongs to; None for another
    error."""
    from mlflow.exceptions import MlflowException

    if found := next(filter(_is_missing, _FAILED_FILES.findall(str(error))), None):
        return str(found)
    missing = isinstance(error, MlflowException) and error.error_code == MISSING
    return str(error) if missing or _is_missing_file(error) else None


def _is_missing(reason: str) -> bool:
    if found := _START.match(reason):
        return (found[1] or found[2]) in _ABSENT
    return bool(_MISSING.search(reason)) and not _REFUSED.search(reason)


def _is_missing_file(error: BaseException) -> bool:
    """Also of requests, whose errors have the answer of the server."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(error, FileNotFoundError | NotADirectoryError) or status in _MISSING_STATUSES
