"""What a tracking server answers, and the user that requests are sent as.

Used by the client, to judge an address before anything is sent, and to name the user of a refusal.
"""

from typing import Any
from urllib.parse import unquote, urlsplit

SEARCH = "/api/2.0/mlflow/experiments/search"
"""A request that any server answers and any user may send; `/health` needs no password, and other
servers have it too."""
GET = "/api/2.0/mlflow/experiments/get"
"""A request that every server refuses without the id of an experiment."""
ERROR_CODE, EXPERIMENT_ID = "error_code", "experiment_id"
"""Keys of a refusal, and of a listed experiment."""
LISTED = {"experiments", "next_page_token"}
"""In a server's answer to the search for experiments."""
ANONYMOUS = "a request without a user"


def probe(uri: str, *, timeout_seconds: float) -> tuple[Any, bool]:
    """A server's answer to a search for experiments, and whether it is a tracking server's.

    Without any it is `{}`, as of a server that answers every request so, but that refuses none.
    Raises MlflowException without an answer; its cause or context is the error of `requests`.
    """
    answer = _answer(uri, SEARCH, "POST", timeout_seconds, json={"max_results": 1})
    found = _json(answer) if answer.ok else {"": answer.status_code}
    listed = found.get("experiments", [])
    if found.keys() - LISTED or not isinstance(listed, list):
        return answer, False
    if listed:
        return answer, all(isinstance(one, dict) and EXPERIMENT_ID in one for one in listed)
    refused = _answer(uri, GET, "GET", timeout_seconds)
    return answer, refused.status_code in (401, 403) or ERROR_CODE in _json(refused)


def _json(answer: Any) -> dict[str, Any]:
    """The object of an answer in JSON; of another one what no tracking server answers."""
    try:
        found = answer.json()
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"": found}


def _answer(uri: str, path: str, method: str, timeout_seconds: float, **body: Any) -> Any:
    """The answer of a server to a request as MLflow sends it: with its credentials, from the
    environment or ~/.mlflow, its certificates and plugins. Redirects are not followed."""
    from mlflow.utils.rest_utils import http_request

    return http_request(
        host_credentials(uri),
        path,
        method,
        max_retries=0,
        timeout=timeout_seconds,
        raise_on_status=False,
        allow_redirects=False,
        **body,
    )


def host_credentials(uri: str) -> Any:
    """What MLflow identifies itself with to a server: `username`, `token` and more."""
    from mlflow.utils.credentials import get_default_host_creds

    return get_default_host_creds(uri)


def identity(uri: str) -> str:
    """The user that requests are sent as, without the password."""
    given = host_credentials(uri)
    named = given.username if given.username and given.password else urlsplit(uri).username
    if named:
        return f"the user {unquote(named)}"
    return "the token" if given.token else ANONYMOUS
