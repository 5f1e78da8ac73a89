"""What the code relies on in the texts of pyarrow's errors, from a server that refuses."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pyarrow import fs

from pipelines.compat.pyarrow import is_transient
from tests.pipelines.conftest import KEYS


class Refusing(ThreadingHTTPServer):
    """Refuses every request, as S3 does: with a status and a name."""

    status, name = 403, "AccessDenied"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Refusing

    def refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = f"<Error><Code>{self.server.name}</Code><Message>no</Message></Error>".encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = refuse

    def log_message(self, *_) -> None:
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[Refusing]:
    with Refusing() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def s3_client(server, monkeypatch) -> fs.FileSystem:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    options = {"endpoint_override": server.host, "scheme": "http", "region": "us-east-1"}
    return fs.S3FileSystem(**options)


@pytest.fixture
def google_client(server) -> fs.FileSystem:
    limit = timedelta(seconds=1)
    options = {"endpoint_override": server.host, "scheme": "http", "retry_time_limit": limit}
    return fs.GcsFileSystem(anonymous=True, **options)


def read(system: fs.FileSystem) -> OSError:
    with pytest.raises(OSError) as error:
        system.open_input_stream("bucket/x").read()
    return error.value


def write(system: fs.FileSystem) -> OSError:
    with pytest.raises(OSError) as error, system.open_output_stream("bucket/x") as out:
        out.write(b"a")
    return error.value


@pytest.mark.server
@pytest.mark.parametrize(
    ("status", "name"),
    [
        (403, "AccessDenied"),
        (404, "NoSuchBucket"),
        (404, "NoSuchKey"),
        (403, "InvalidAccessKeyId"),
        (403, "SignatureDoesNotMatch"),
        (400, "ExpiredToken"),
        (405, "OfNoNameThatTheClientHas"),
    ],
)
def test_what_s3_refuses_is_not_repeated(server, s3_client, status, name):
    server.status, server.name = status, name
    assert not is_transient(read(s3_client))
    error = write(s3_client)
    assert error.errno is None  # so that the text decides
    assert not is_transient(error)


@pytest.mark.server
def test_an_overloaded_s3_is_asked_again(server, s3_client):
    server.status, server.name = 503, "SlowDown"
    assert is_transient(read(s3_client))


@pytest.mark.server
@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_google_cloud_refuses_is_not_repeated(server, google_client, status):
    server.status = status
    assert not is_transient(read(google_client))
    assert not is_transient(write(google_client))


def test_a_bucket_that_is_not_there_is_named_by_a_real_server(s3):
    system, path = fs.FileSystem.from_uri(s3.replace("bucket/", "none/"))
    with pytest.raises(OSError, match="NO_SUCH_BUCKET") as error:
        fs.copy_files(__file__, path, fs.LocalFileSystem(), system)
    assert not is_transient(error.value)


def test_a_full_disk_is_not_repeated():
    with pytest.raises(OSError, match="No space left") as error:
        write_full()
    assert not is_transient(error.value)


def write_full() -> None:
    with fs.LocalFileSystem().open_output_stream("/dev/full") as out:
        out.write(b"a")


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (OSError("When reading: AWS Error NETWORK_CONNECTION"), True),
        (OSError("AWS Error UNKNOWN (HTTP status 408)"), True),
        (OSError("AWS Error UNKNOWN (HTTP status 429)"), True),
        (OSError("AWS Error UNKNOWN (HTTP status 405)"), False),
        (OSError("AWS Error ACCESS_DENIED"), False),
        (OSError(28, "No space left on device"), False),
        (ValueError("AWS Error NETWORK_CONNECTION"), False),
    ],
)
def test_errors_of_a_store_without_an_answer_are_repeated(error, transient):
    assert is_transient(error) == transient
