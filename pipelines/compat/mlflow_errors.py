"""Which error MLflow's text is: a database that is locked, a server that is away, one that refuses.

Used by the client and by the registry, to repeat a call or to say why it cannot be.
"""

import re
from typing import Any
from urllib.parse import urlsplit

_LOCKED = "database is locked"
"""SQLite's text; its error number is lost on the way through SQLAlchemy and MLflow."""
_SQLITE = "sqlite3."
"""How SQLAlchemy begins the text of an error of that driver."""
_FAILED_FILE = re.compile(
    "database or disk is full|disk I/O error|attempt to write a readonly database|"
    "database disk image is malformed|unable to open database file|file is not a database|"
    "no such table"
)
"""SQLite's texts of a file that cannot be used, somewhere in that of MLflow."""
_DELETED = re.compile(r"^.*?[Tt]he (run|experiment) (\S+) must be in the 'active' state")
"""How MLflow refuses to write to what was deleted, as in its UI."""
_NO_ANSWER = "API request to"
"""How the text of an HTTP request begins that got no answer, or that of an overloaded server; the
code is INTERNAL_ERROR, as of a server's own faults."""
_CAUSE = re.compile(r"""failed with exception (?:.*\(Caused by \w+\((["']))?(.*?)(?:\1\)\))?$""")
"""Where in such a text the reason is, which urllib3 puts last."""
_CONNECTION = re.compile(r"^HTTPS?Connection(Pool)?\(.*?\): |\[Errno -?\d+\] ")
"""Of a reason: the server's address once more, and a number of the system."""
_TOO_MANY = re.compile(r"^too many (\d{3}) error responses$")
"""The reason after several answers with that status."""
_OVERLOADED = (429, 503, 504)
"""HTTP statuses of a server that is overloaded, starting or behind a proxy that gave up; MLflow
repeats requests that get these or 500, and after its last try gives the text of no answer."""
_STATUS = re.compile(r"(?s)failed with error code (\d{3}) != 200\. Response body: '(.*)'")
"""How the text of an error ends whose answer is not JSON, as that of a proxy."""
_MISSING_OR_BUSY = (404, 408, 409, 425, 429)
"""HTTP statuses from 400 to 499 that do not say that a user, or a proxy, may not do this."""
_CONFLICTS = (
    "IntegrityError",  # of SQLite; through a server only the text arrives
    "UniqueViolation",  # of PostgreSQL
    "Giving up after",  # of MLflow itself, once other writers have taken every number it tried
)


def is_locked(error: BaseException) -> bool:
    """Whether a database is locked by another process."""
    return _LOCKED in str(error)


def store_errors() -> tuple[type[Exception], ...]:
    """The errors with which MLflow ends that cannot use a store: its own, and those of SQLAlchemy
    and of the migrations of a database, which it passes on."""
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, CommandError


def is_transient(error: BaseException) -> bool:
    """Whether a store's error is a locked database, or a server that is away or overloaded.

    Not one that refuses, nor a full disk, which MLflow calls unavailable too.
    """
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException) or refused(error):
        return False
    text = str(error)
    if _SQLITE in text:
        return _LOCKED in text
    unanswered = error.error_code == "INTERNAL_ERROR" and _NO_ANSWER in text
    return unanswered or error.get_http_status_code() in _OVERLOADED


def unanswered(error: BaseException) -> tuple[str, str] | None:
    """The server that gave no answer to a request, or only errors, and why; None of another
    error."""
    text = str(error).partition("\n")[0].strip()
    if not text.startswith(_NO_ANSWER) or (found := _CAUSE.search(text)) is None:
        return None
    address = urlsplit(text.removeprefix(_NO_ANSWER).split()[0])
    reason = _TOO_MANY.sub(r"HTTP \1", _CONNECTION.sub("", found[2]))
    return f"{address.scheme}://{address.netloc}", reason


def refused(error: Any) -> str | None:
    """The status and the reason with which a server refuses a call; None if it does not."""
    answer = getattr(error, "response", None)  # of requests, for an artifact
    if answer is not None:
        status, text = answer.status_code, answer.text
        refuses = status in (401, 403)
    elif found := _STATUS.search(str(error)):
        status, text = int(found[1]), found[2]
        refuses = 400 <= status < 500 and status not in _MISSING_OR_BUSY
    elif isinstance(error, OSError):
        return None
    else:
        status, text = error.get_http_status_code(), str(error)
        refuses = status in (401, 403)
    if not refuses:
        return None
    is_page = text.lstrip().startswith("<")
    return f"HTTP {status}" if is_page else f"HTTP {status}: {text.strip() or 'no reason'}"


def failed_file(error: BaseException) -> str | None:
    """Why a database's file cannot be used, such as a full disk; None if it can."""
    text = str(error)
    found = _FAILED_FILE.search(text) if _SQLITE in text else None
    return found and found[0]


def deleted(error: BaseException) -> str | None:
    """What was deleted that a call would change, as in `run 0af3`; None of another error."""
    found = _DELETED.match(str(error))
    return found and f"{found[1]} {found[2]}"


def is_write_conflict(error: BaseException) -> bool:
    """Whether two writers met in the registry's tables, so that neither is known to be first."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import IntegrityError

    text = str(error)
    return isinstance(error, (MlflowException, IntegrityError)) and any(
        sign in text for sign in _CONFLICTS
    )
