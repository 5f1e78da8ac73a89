"""Download of a large file: resumed where it stopped, renamed to its own name when it is complete.

Used by pipelines.data.published, which imports it when a file is missing.
"""

import fcntl
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import requests

from pipelines.console.errors import PipelineError, StorageError
from pipelines.console.retries import RetryPolicy
from pipelines.console.transfer import download_progress
from pipelines.console.updates import OutputMode
from pipelines.storage.files import DOWNLOAD_SECONDS, move_into_place

ATTEMPTS = 4
TIMEOUT_SECONDS = 30
"""Longest time without an answer, or without a further byte of it."""
CHUNK_BYTES = 1 << 16
"""At most this much is downloaded twice after a lost connection."""
LOCK_PAUSE_SECONDS = 0.5
"""Between two looks at whether another process has ended its download."""


def download(url: str, path: Path, size: int, mode: OutputMode = OutputMode.TEXT) -> None:
    """Download a file. Until it is complete it is called NAME.part, from which a download resumes.

    If another process downloads it, that is waited for.

    Args:
        url: Of the file.
        path: Of the file on this machine.
        size: Of the file, in bytes.
        mode: How the download is shown.

    Raises:
        PipelineError: The server cannot be reached or has another file, or another process takes
            too long.
        StorageError: The file cannot be written.

    """
    part = path.with_name(f"{path.name}.part")
    advice = f"run the same command again, or put {path.name} into {path.parent.absolute()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            _lock(file, part)
            if path.exists():  # another process was faster
                return
            done = file.seek(0, os.SEEK_END)
            with download_progress(path.name, done, size, mode) as show:
                RETRIES.call(_complete, url, file, size, show)
            file.flush()
            move_into_place(part, path)
    except requests.RequestException as error:
        raise PipelineError(f"{url}: {_reason(error)}; {advice}") from error
    except BlockingIOError:
        raise PipelineError(f"{part}: another process downloads it") from None
    except OSError as error:
        raise StorageError(f"{part}: cannot be written: {error.strerror}") from error


def _lock(file: BinaryIO, part: Path) -> None:
    """Lock the part, with a line if it takes long. Raises BlockingIOError."""
    deadline, waits = time.monotonic() + DOWNLOAD_SECONDS, False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        if not waits:
            logging.getLogger(__name__).warning(
                "waits for another process, which downloads %s, at most %.0f s",
                part,
                DOWNLOAD_SECONDS,
            )
            waits = True
        time.sleep(LOCK_PAUSE_SECONDS)


def _is_transient(error: BaseException) -> bool:
    if not isinstance(error, requests.RequestException) or isinstance(error, _OtherFile):
        return False
    return error.response is None or error.response.status_code >= 500


RETRIES = RetryPolicy(_is_transient, max_attempts=ATTEMPTS, random_pauses=False)
"""With pauses of 1, 2 and 4 s. Nothing is logged: the progress shows the time meanwhile."""


def _complete(url: str, file: BinaryIO, size: int, show: Callable[[int], None]) -> None:
    """Append the missing bytes, or write all of them if the server cannot start in the middle."""
    begin = file.seek(0, os.SEEK_END)
    if begin == size:
        return
    if begin > size:  # a part of another file
        begin = file.truncate(0)
    headers = {"Range": f"bytes={begin}-", "Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        response.raise_for_status()
        _check(response, begin, size)
        if response.status_code != requests.codes.partial_content:
            file.truncate(0)
        for chunk in response.iter_content(CHUNK_BYTES):
            file.write(chunk)
            show(file.tell())


class _OtherFile(requests.RequestException):
    """The server has another file at that URL."""


def _check(response: requests.Response, begin: int, size: int) -> None:
    """Raise _OtherFile for an answer of another size, such as a login page."""
    if response.status_code == requests.codes.partial_content:
        header, expected = "Content-Range", f"bytes {begin}-{size - 1}/{size}"
    else:
        header, expected = "Content-Length", str(size)
    found = response.headers.get(header)
    if found != expected:
        raise _OtherFile(f"expected {header}: {expected}, got {found}")


def _reason(error: requests.RequestException) -> str:
    """The reason of a failure, without the nested errors of the libraries below."""
    if isinstance(error, _OtherFile):
        return str(error)
    if error.response is not None:
        return f"HTTP {error.response.status_code} {error.response.reason}"
    return f"the download failed ({type(error).__name__})"
