"""The tracking store: MLflow's experiments, runs, artifacts and logged models.

A run is found by what it is (tags `dca.kind` and `dca.key`), never by its name or by the order of
events, so that a command that was killed finds its own work again. Whoever needs the store while it
is locked or away waits for it; histories are written behind the back of the training.
"""

import logging
import threading
from typing import Any, NoReturn

import tenacity
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipelines.console.errors import PipelineError

PATIENCE_SECONDS = 3600
"""How long a store may be away before a command gives up; what it knows is then in checkpoints."""
MOST_SECONDS_BETWEEN_TRIES = 10


cancel_retries = threading.Event()
"""Set when waiting is over: patience has run out, or the command ends."""


def is_transient(error: BaseException) -> bool:
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
        logging.getLogger(__name__).warning("MLflow: %s; trying again", _last_error(state))


def _last_error(state: tenacity.RetryCallState) -> str:
    error = state.outcome and state.outcome.exception()
    return str(error).splitlines()[0][:200]


def _gave_up(state: tenacity.RetryCallState) -> NoReturn:
    cancel_retries.set()
    raise PipelineError(
        f"MLflow: {_last_error(state)}; what it does not have is in the checkpoints: "
        "run the same command again"
    )


retry_transient = tenacity.retry(
    retry=tenacity.retry_if_exception(is_transient),
    wait=tenacity.wait_random_exponential(multiplier=0.5, max=MOST_SECONDS_BETWEEN_TRIES),
    stop=tenacity.stop_after_delay(PATIENCE_SECONDS) | tenacity.stop_when_event_set(cancel_retries),
    sleep=tenacity.sleep_using_event(cancel_retries),
    before_sleep=_tell,
    retry_error_callback=_gave_up,
)
"""Repeats, with growing pauses, what a store that is locked or away could not do. The calls must be
safe to repeat: an answer may have been lost after the work was done. Raises PipelineError when its
patience, or that of another call, has run out."""


class RetryingClient:
    """An MLflow client whose calls are repeated. What creates something is not: whoever calls that
    can tell whether it happened."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return method if name.startswith("create_") else retry_transient(method)
