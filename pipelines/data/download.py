"""A large file from the web: resumed where it stopped, under its own name only when it is whole."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import requests

from pipelines.console.errors import PipelineError, StorageError
from pipelines.console.retries import RetryPolicy
from pipelines.console.transfer import download_progress
from pipelines.console.updates import OutputMode

ATTEMPTS = 4
TIMEOUT_SECONDS = 30
"""Without an answer, or without a further byte of it."""
CHUNK_BYTES = 1 << 16
"""At most this much is fetched twice after a cut."""


def download(url: str, path: Path, size: int, mode: OutputMode = OutputMode.TEXT) -> None:
    """Fetch a file of `size` bytes. What there is of it waits beside it, as NAME.part.

    Raises PipelineError if the server cannot be reached or has another file, StorageError if the
    disk does not take it.
    """
    part = path.with_name(f"{path.name}.part")
    otherwise = f"run the same command again, or put {path.name} into {path.parent.absolute()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file, download_progress(path.name, file.tell(), size, mode) as show:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists():  # another process was faster
                return
            RETRIES.call(_complete, url, file, size, show)
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)
    except requests.RequestException as error:
        raise PipelineError(f"{url}: {_reason(error)}; {otherwise}") from error
    except BlockingIOError:
        raise PipelineError(f"{part}: another process downloads it") from None
    except OSError as error:
        raise StorageError(f"{part}: cannot be written: {error.strerror}") from error


def _is_transient(error: BaseException) -> bool:
    if not isinstance(error, requests.RequestException) or isinstance(error, _OtherFile):
        return False
    return error.response is None or error.response.status_code >= 500


RETRIES = RetryPolicy(_is_transient, max_attempts=ATTEMPTS, name="download")


def _complete(url: str, file: BinaryIO, size: int, show: Callable[[int], None]) -> None:
    """Append what is missing, or write all of it where the server cannot begin in the middle."""
    begin = file.seek(0, os.SEEK_END)
    if begin == size:
        return
    if begin > size:  # not of this file
        begin = file.truncate(0)
    headers = {"Range": f"bytes={begin}-", "Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as answer:
        answer.raise_for_status()
        _check(answer, begin, size)
        if answer.status_code != requests.codes.partial_content:
            file.truncate(0)
        for chunk in answer.iter_content(CHUNK_BYTES):
            file.write(chunk)
            show(file.tell())


class _OtherFile(requests.RequestException):
    """The server has something else under that address."""


def _check(answer: requests.Response, begin: int, size: int) -> None:
    """A page that asks for a login is an answer too: not one to keep."""
    if answer.status_code == requests.codes.partial_content:
        header, expected = "Content-Range", f"bytes {begin}-{size - 1}/{size}"
    else:
        header, expected = "Content-Length", str(size)
    found = answer.headers.get(header)
    if found != expected:
        raise _OtherFile(f"expected {header}: {expected}, got {found}")


def _reason(error: requests.RequestException) -> str:
    """Without the pools and the nested errors of the libraries below."""
    if isinstance(error, _OtherFile):
        return str(error)
    if error.response is not None:
        return f"HTTP {error.response.status_code} {error.response.reason}"
    return f"the download failed ({type(error).__name__})"
