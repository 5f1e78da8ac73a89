"""A download from a real server that closes the connection, ignores Range or has another file."""

import fcntl
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipelines.console.errors import PipelineError, StorageError
from pipelines.console.updates import OutputMode
from pipelines.data import download as module
from pipelines.data.download import ATTEMPTS, CHUNK_BYTES, download

pytestmark = pytest.mark.server
CONTENT = bytes(range(256)) * 4096 + b"the end"
HALF = len(CONTENT) // 2


class Server(ThreadingHTTPServer):
    """Serves CONTENT, and records where each request begins."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.ranges = True
        self.cuts = 0
        """Answers that end after half of their length."""
        self.errors = 0
        """Answers that are 503, before any other."""
        self.interrupts = False
        """Whether the answer stops halfway and the process is sent Ctrl-C."""
        self.begins: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/text.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        begin = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
        self.server.begins.append(begin)
        if self.server.errors:
            self.server.errors -= 1
            self.send_error(503)
            return
        whole = len(self.server.content)
        if begin >= whole:
            self.send_error(416)
            return
        begin = begin if self.server.ranges else 0
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{whole - 1}/{whole}")
        self.send_header("Content-Length", str(whole - begin))
        self.end_headers()
        with suppress(ConnectionError):  # the client does not wait for the rest after Ctrl-C
            self._send(self.server.content[begin:])

    def _send(self, body: bytes) -> None:
        if self.server.cuts > 0 or self.server.interrupts:
            self.server.cuts -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)
        self.wfile.flush()
        if self.server.interrupts:
            os.kill(os.getpid(), signal.SIGINT)
            self.connection.recv(1)  # until the client has closed it

    def log_message(self, *_) -> None:
        """Print nothing."""


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "RETRIES", replace(module.RETRIES, pause_seconds=0))
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "data" / "text.zip"


def part_of(path: Path) -> Path:
    return path.with_name("text.zip.part")


def test_a_file_is_fetched_into_a_folder_that_is_made(server, path):
    download(server.url, path, len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


def test_a_lost_connection_resumes_where_it_was(server, path):
    server.cuts = 2
    download(server.url, path, len(CONTENT))
    assert path.read_bytes() == CONTENT
    first, second, third = server.begins
    assert first == 0 < HALF - CHUNK_BYTES <= second <= HALF < third


def test_a_server_that_ignores_range_starts_again(server, path):
    server.cuts, server.ranges = 1, False
    download(server.url, path, len(CONTENT))
    assert path.read_bytes() == CONTENT
    first, second = server.begins
    assert first == 0 < second


def test_a_request_is_repeated_after_a_server_error(server, path, caplog, monkeypatch):
    pauses = []
    monkeypatch.setattr(module, "RETRIES", replace(module.RETRIES, pause_seconds=1.0))
    monkeypatch.setattr("tenacity.nap.time.sleep", pauses.append)
    server.errors = ATTEMPTS - 1
    download(server.url, path, len(CONTENT), OutputMode.QUIET)
    assert path.read_bytes() == CONTENT
    assert pauses == [1, 2, 4]
    assert caplog.records == []


def test_a_later_command_resumes_the_part(server, path):
    server.cuts = ATTEMPTS
    with pytest.raises(PipelineError, match="run the same command again"):
        download(server.url, path, len(CONTENT))
    assert not path.exists()
    there = part_of(path).read_bytes()
    assert there == CONTENT[: len(there)]
    download(server.url, path, len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert server.begins[ATTEMPTS:] == [len(there)]


def test_ctrl_c_keeps_the_part(server, path):
    server.interrupts = True
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            download(server.url, path, len(CONTENT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert not path.exists()
    there = part_of(path).read_bytes()
    assert there == CONTENT[: len(there)]
    server.interrupts = False
    download(server.url, path, len(CONTENT))
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(("there", "begins"), [(CONTENT, []), (CONTENT + b"more", [0])])
def test_a_complete_part_is_used_and_one_that_is_too_long_is_not(server, path, there, begins):
    path.parent.mkdir()
    part_of(path).write_bytes(there)
    download(server.url, path, len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert server.begins == begins


def test_a_page_instead_of_the_file_is_refused_at_once_and_the_part_kept(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(CONTENT[:HALF])
    server.content, server.ranges = b"<html>please log in</html>" * 100_000, False
    with pytest.raises(PipelineError, match=r"expected Content-Length: 1048583, got 2600000; run"):
        download(server.url, path, len(CONTENT))
    server.ranges = True
    with pytest.raises(PipelineError, match=r"expected Content-Range: .*/1048583, got .*/2600000"):
        download(server.url, path, len(CONTENT))
    assert part_of(path).read_bytes() == CONTENT[:HALF]
    assert server.begins == [HALF, HALF]


def test_without_a_network_one_line_names_the_file_to_provide(server, path):
    url = server.url
    server.server_close()
    with pytest.raises(PipelineError) as error:
        download(url, path, len(CONTENT))
    message = str(error.value)
    assert message == (
        f"{url}: the download failed (ConnectionError); run the same command again, "
        f"or put text.zip into {path.parent}"
    )


def test_an_address_without_the_file_is_not_tried_again(server, path):
    server.content = b""
    with pytest.raises(PipelineError, match="HTTP 416 Requested Range Not Satisfiable; run"):
        download(server.url, path, len(CONTENT))
    assert server.begins == [0]


def test_two_processes_do_not_write_one_part(server, path, monkeypatch):
    monkeypatch.setattr(module, "DOWNLOAD_SECONDS", 0.1)
    path.parent.mkdir()
    with part_of(path).open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(PipelineError, match="another process downloads it"):
            download(server.url, path, len(CONTENT))
    assert server.begins == []


@pytest.mark.parametrize("ends_well", [True, False])
def test_the_download_of_another_process_is_waited_for(
    server, path, monkeypatch, caplog, ends_well
):
    """The second of two commands failed at once."""
    path.parent.mkdir()
    with part_of(path).open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(CONTENT if ends_well else CONTENT[:HALF])
        other.flush()

        def sleep(seconds: float) -> None:
            assert 0 < seconds <= 1
            if ends_well:
                part_of(path).rename(path)
            fcntl.flock(other, fcntl.LOCK_UN)

        monkeypatch.setattr("time.sleep", sleep)
        download(server.url, path, len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert server.begins == ([] if ends_well else [HALF])
    (line,) = caplog.messages
    assert line.startswith(f"waits for another process, which downloads {part_of(path)}, at most ")


def test_a_disk_that_does_not_take_the_file_is_named(server, path):
    path.parent.write_bytes(b"a file where the folder should be")
    with pytest.raises(StorageError, match=r"text\.zip\.part: cannot be written: "):
        download(server.url, path, len(CONTENT))


def test_a_file_is_complete_on_the_disk_before_it_has_its_name(server, path, monkeypatch):
    """And its folder after."""
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda file: synced.append((os.fstat(file).st_ino, path.exists()))
    )
    download(server.url, path, len(CONTENT))
    assert synced == [(path.stat().st_ino, False), (path.parent.stat().st_ino, True)]
    assert path.stat().st_size == len(CONTENT)


def test_a_terminal_gets_a_bar(server, path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    download(server.url, path, len(CONTENT))
    captured = capsys.readouterr()
    shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", captured.err)
    assert re.search(r"downloading text\.zip ━+ 1\.0/1\.0 MB ", shown)
    assert captured.out == ""


def test_a_log_file_gets_plain_lines(server, path, capsys):
    part_of(path).parent.mkdir()
    part_of(path).write_bytes(CONTENT[:HALF])
    download(server.url, path, len(CONTENT))
    captured = capsys.readouterr()
    assert captured.err.strip() == "downloading text.zip: 0.5 of 1.0 MB, 0:00"
    assert captured.out == ""
