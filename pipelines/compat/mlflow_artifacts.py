"""Artifacts of MLflow: reading one of a run, and why the files of a store cannot be read.

Used by the client. MLflow puts the errors of all files of a download into one text.
"""

import re
from pathlib import Path

from pipelines.compat.mlflow import MISSING

_FAILED_FILES = re.compile(r"##### File [^\n]* #####\n([^\n]*)")
"""In the error of a download: the reason of each file that was not read."""
_MISSING = re.compile(
    r"(?i)\[Errno (2|20)\]|\b(404|410) (Client Error|Not Found)|\((404|NoSuch\w+)\)|\b404 GET\b"
    r"|no such (file|artifact|object)|(does not|doesn't) exist|BlobNotFound"
)
"""How the stores of artifacts say that there is no such file."""
_MISSING_STATUSES = (404, 410)


def read_artifact(uri: str, file: str, folder: Path, tracking_uri: str) -> Path:
    """Copy an artifact, by its place below the artifacts of a run, into a folder.

    MlflowClient.download_artifacts raises that the path is wrong, whatever the reason is.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    store = get_artifact_repository(uri, tracking_uri=tracking_uri, registry_uri=tracking_uri)
    return Path(store.download_artifacts(file, dst_path=str(folder)))


def unreadable(error: BaseException) -> str | None:
    """Why files cannot be read or written that are not missing, as of a server that refuses or a
    full disk; None for another error."""
    if isinstance(error, OSError):  # also of requests, with the answer of the server
        status = getattr(getattr(error, "response", None), "status_code", None)
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        return None if missing or status in _MISSING_STATUSES else str(error)
    reasons = _FAILED_FILES.findall(str(error))
    return next((reason for reason in reasons if not _MISSING.search(reason)), None)


def gone(error: BaseException) -> str | None:
    """The text of an error of a file that is not there, or of what it belongs to; None for another
    error."""
    from mlflow.exceptions import MlflowException

    if found := next(filter(_MISSING.search, _FAILED_FILES.findall(str(error))), None):
        return str(found)
    missing = isinstance(error, MlflowException) and error.error_code == MISSING
    return str(error) if missing or isinstance(error, FileNotFoundError) else None
