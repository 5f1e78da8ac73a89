"""Why files of a store cannot be read: the texts of MLflow, of its server and of object stores."""

import re
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from pipelines.compat.mlflow_artifacts import (
    copy_artifacts,
    failed_copy,
    gone,
    read_artifact,
    unreadable,
)

HEAD = "The following failures occurred while downloading one or more artifacts from http://h/a:"
MISSING = [
    "404 Client Error: Not Found for url: http://h/a/x.txt. Response text: {}",
    "No such artifact: 'x.txt'",
    "[Errno 2] No such file or directory: '/a/x.txt'",
    "An error occurred (404) when calling the HeadObject operation: Not Found",
    "An error occurred (NoSuchKey) when calling the GetObject operation: no key",
    "[Errno 2] No such file or directory: '/home/ann/accounting/runs/403/x.txt'",
    "[Errno 20] Not a directory: '/mnt/401/AccessKey/x.txt'",
    "404 Client Error: Not Found for url: http://h/artifacts/403/r/x.txt. Response text: account",
    "No such artifact: 'accounting/403/x.txt'",
    "500 Server Error for url: http://h/403/x. Response text: An error occurred (404) when calling",
    "The specified blob does not exist.",
]
OTHER = [
    "403 Client Error: FORBIDDEN for url: http://h/404/x.txt",
    "500 Server Error: INTERNAL SERVER ERROR for url: http://h/x.txt",
    "[Errno 28] No space left on device",
    "[Errno 24] Too many open files: '/tmp/x'",
    "An error occurred (403) when calling the HeadObject operation: Forbidden",
    "An error occurred (InvalidAccessKeyId): The AWS Access Key Id you provided does not exist",
    "403 Client Error: Forbidden. Response text: the account does not exist",
    "[Errno 13] Permission denied: '/mnt/no such file/x.txt'",
    "API request failed with error code 403 != 200. Response body: it does not exist",
    "('Connection aborted.', RemoteDisconnected('Remote end closed connection'))",
    "Failed to resolve 'h' ([Errno -2] Name or service not known)",
]


def failed(*reasons: str) -> MlflowException:
    """As a download ends whose files failed for these reasons."""
    files = (f"##### File x{number} #####\n{text}" for number, text in enumerate(reasons))
    return MlflowException("\n".join([HEAD, *files]))


@pytest.mark.parametrize("reason", MISSING)
def test_a_file_that_is_not_there_is_gone(reason):
    assert (gone(failed(reason)), unreadable(failed(reason))) == (reason, None)


@pytest.mark.parametrize("reason", OTHER)
def test_a_file_that_cannot_be_read_is_not_gone(reason):
    assert (gone(failed(reason)), unreadable(failed(reason))) == (None, reason)
    assert unreadable(failed(MISSING[0], reason)) == reason


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (OTHER[2], (28, "No space left on device", None)),
        (OTHER[3], (24, "Too many open files", "/tmp/x")),
        (OTHER[7], (13, "Permission denied", "/mnt/no such file/x.txt")),
        ('[Errno 13] Permission denied: "/a\'b: c"', (13, "Permission denied", "/a'b: c")),
    ],
)
def test_the_systems_error_of_a_download_has_its_number_and_file(reason, expected):
    error = failed_copy(failed(OTHER[0], reason))
    assert (error.errno, error.strerror, error.filename) == expected


def test_an_error_of_no_system_is_none_of_a_copy():
    assert failed_copy(failed(OTHER[0], *OTHER[9:])) is None


def test_an_error_without_files_is_about_none():
    assert unreadable(MlflowException("a run is missing")) is None
    assert gone(MlflowException("a run is missing")) is None


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("Could not connect to the endpoint URL", OSError),
        (MISSING[3], FileNotFoundError),
        ("It does not exist.\nErrorCode:InvalidAccountName", OSError),
        ("It does not exist.\nErrorCode:BlobNotFound", FileNotFoundError),
    ],
)
def test_errors_of_a_librarys_own_are_those_of_files(monkeypatch, tmp_path, reason, kind):
    def fail(*_, **__):
        raise RuntimeError(reason)  # as botocore's, which are of no other kind

    monkeypatch.setattr(LocalArtifactRepository, "download_artifacts", fail)
    for read in (
        lambda: read_artifact(f"file://{tmp_path}", "x", tmp_path, "sqlite:///none.db"),
        lambda: copy_artifacts(f"file://{tmp_path}", tmp_path, "sqlite:///none.db"),
    ):
        with pytest.raises(kind, match=re.escape(reason)) as error:
            read()
        missing = kind is FileNotFoundError
        assert (gone(error.value), unreadable(error.value)) == (
            (reason, None) if missing else (None, reason)
        )


def test_an_answer_of_a_server_is_one_of_both():
    error = OSError("no such file here")
    for status in (404, 403):
        error.response = SimpleNamespace(status_code=status)
        found = gone(error), unreadable(error)
        assert found == ((str(error), None) if status == 404 else (None, str(error)))
