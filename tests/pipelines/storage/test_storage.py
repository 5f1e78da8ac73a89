"""Storage that every node sees: a real S3 server, and a folder that stands for a mounted one."""

import multiprocessing
import os
import pickle
import re
import socket
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from pipelines.console.errors import ConfigError, DamagedError, PipelineError, StorageError
from pipelines.storage import files, filesystem, location
from pipelines.storage.digests import sha256_of
from pipelines.storage.files import RemoteFile, file_at, local_copy, put_file
from pipelines.storage.location import Storage
from pipelines.storage.remote import RemoteDirectory
from tests.pipelines import forked
from tests.pipelines.conftest import KEYS


def written(path: Path, content: bytes = b"bytes") -> Path:
    path.write_bytes(content)
    return path


def test_a_path_is_of_this_machine_and_a_uri_of_every_node(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Storage.of("runs").folder == tmp_path / "runs"
    assert Storage.of("runs").is_local
    for uri in ("s3://bucket/a/b?region=eu-west-1", "gs://bucket", f"file://{tmp_path}/"):
        assert not Storage.of(uri).is_local


def test_a_shared_folder_is_a_small_value_that_names_its_place():
    folder = Storage.of("s3://bucket/a/?region=eu-west-1").folder / "trials" / "7"
    assert str(folder) == "s3://bucket/a/trials/7?region=eu-west-1"
    assert folder.name == "7"
    assert Storage.of(str(folder)).folder / "x" == RemoteDirectory(str(folder), "x")
    assert pickle.loads(pickle.dumps(folder)) == folder
    assert len(pickle.dumps(folder)) < 200


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAHIDDEN:hidden@bucket/x",
        "s3://AKIAHIDDEN:hid/den@bucket/x",
        "s3://AKIAHIDDEN:hid?den@bucket/x",
        "s3://AKIAHIDDEN@bucket/x",
        "s3://bucket/x?access_key=AKIAHIDDEN&secret_key=hidden",
        "s3://bucket/x?region=eu-west-1&session_token=hidden",
        "s3://bucket/x?hidden",
        "s3://bucket/x#hidden",
        "gs://hidden@bucket/x",
        "file://hidden@host/x",
        "s3://",
        "s4://bucket/x",
        "file://relative",
        "s3:/hidden/x",
        "file:/hidden",
    ],
)
def test_what_holds_a_secret_or_is_no_place_is_refused_and_not_repeated(uri):
    with pytest.raises(
        ConfigError, match=r"^storage: expected .* read from the environment"
    ) as error:
        Storage.of(uri)
    assert [problem.key for problem in error.value.problems] == ["storage"]
    assert not re.search("hid|HID|relative|s4", str(error.value))
    assert len(str(error.value).splitlines()) == 1


def test_a_probe_leaves_nothing(shared):
    Storage(shared).probe()
    assert shared.files() == set()


def test_named_files_are_put_and_got_and_no_others(shared, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    for name in "abc":
        written(here / name, name.encode())
    (shared / "x").put(here, "a", "b")
    assert shared.files() == {"x/a", "x/b"}
    (shared / "x").get(there, "b")
    assert [(path.name, path.read_text()) for path in there.iterdir()] == [("b", "b")]
    with pytest.raises(FileNotFoundError):
        (shared / "x").get(there, "c")


def closed_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.parametrize("what", ["no bucket", "nobody", "other keys", "no folder"])
def test_what_cannot_be_used_is_one_line_within_seconds(s3, object_store, what):
    nobody = f"s3://bucket/x?endpoint_override=127.0.0.1:{closed_port()}&scheme=http&region=x"
    uri, expected = {
        "no bucket": (object_store.uri("nowhere/x"), "NO_SUCH_BUCKET"),
        "nobody": (nobody, "Could not connect to server"),
        "other keys": (s3, "INVALID_ACCESS_KEY_ID"),
        "no folder": ("file:///proc/nowhere", "cannot be written: .*No such file"),
    }[what]
    authority = f"http://{object_store.host}/moto-api/reset-auth"
    requests.post(authority, data=b"0" if what == "other keys" else b"inf")
    started = time.monotonic()
    try:
        with pytest.raises(ConfigError, match=expected) as error, Storage.of(uri).write_sentinel():
            pass
    finally:
        requests.post(authority, data=b"inf")
    assert time.monotonic() < started + 20
    text = str(error.value)
    assert text.startswith(f"storage: {uri.partition('?')[0]}/probe-")
    assert len(text.splitlines()) == 1
    assert not any(value in text for value in KEYS.values() if value != "true")


def test_a_store_that_is_away_for_some_seconds_is_waited_for(s3, object_store, tmp_path):
    folder = Storage.of(s3).folder
    folder.put(tmp_path, written(tmp_path / "before").name)
    object_store.stop()
    back = threading.Timer(8, object_store.start)
    back.start()
    try:
        folder.put(tmp_path, written(tmp_path / "after").name)
    finally:
        back.join()
    assert folder.files() == {"before", "after"}


def test_what_a_store_refuses_is_not_tried_again(s3, object_store):
    object_store.log.lines.clear()
    with pytest.raises(StorageError, match=r"cannot be written: .*NO_SUCH_BUCKET"):
        (RemoteDirectory(object_store.uri("nowhere")) / "a").write_text("b")
    assert object_store.log.lines == ["POST /nowhere/a?uploads"]


def test_a_file_is_there_once_its_digest_is(shared, tmp_path, monkeypatch):
    place = shared / "some" / "file.bin"

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(RemoteDirectory, "write_text", die)
        with pytest.raises(KeyboardInterrupt):
            put_file(written(tmp_path / "text"), place)
    assert shared.files() == {"some/file.bin"}
    assert file_at(place) is None
    put_file(tmp_path / "text", place)
    found = file_at(place)
    assert found == RemoteFile(place, sha256_of(tmp_path / "text"), 5)


def _open(file: RemoteFile, node: str, start, sizes, environment: dict[str, str]) -> None:
    os.environ.update(environment)  # it has that of the process it was forked from
    tempfile.tempdir = node
    file.place.exists()  # connects, which takes longer than the file does
    start.wait()
    sizes.put(local_copy(file).stat().st_size)


def test_processes_of_one_node_fetch_a_file_once(s3, object_store, tmp_path):
    folder = Storage.of(s3).folder
    put_file(written(tmp_path / "text", bytes(10**6)), folder / "file.bin")
    file = file_at(folder / "file.bin")
    object_store.log.lines.clear()
    processes = multiprocessing.get_context(forked.METHOD)
    start, sizes = processes.Barrier(3), processes.Queue()
    node = str(tmp_path / "node")
    task = (file, node, start, sizes, dict(os.environ))
    workers = [processes.Process(target=_open, args=task) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert [sizes.get(timeout=60) for _ in workers] == [10**6] * 3
    for worker in workers:
        worker.join()
    fetched = [line for line in object_store.log.lines if line.startswith("GET")]
    assert [line.rpartition("/")[2] for line in fetched] == ["file.bin"]


@pytest.mark.parametrize("damage", [b"bytez", b"byte", b""])
def test_a_damaged_copy_is_fetched_again(shared, tmp_path, damage, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    put_file(written(tmp_path / "text"), shared / "file.bin")
    file = file_at(shared / "file.bin")
    copy = local_copy(file)
    assert copy.is_relative_to(tmp_path)
    copy.write_bytes(damage)
    assert local_copy(file).read_bytes() == b"bytes"
    copy.unlink()
    assert local_copy(file).read_bytes() == b"bytes"


def test_damage_is_found_though_size_and_time_of_modification_are_those_of_before(
    shared, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    put_file(written(tmp_path / "text"), shared / "file.bin")
    file = file_at(shared / "file.bin")
    copy = local_copy(file)
    times = copy.stat().st_atime_ns, copy.stat().st_mtime_ns
    copy.write_bytes(b"BYTES")
    os.utime(copy, ns=times)
    assert local_copy(file).read_bytes() == b"bytes"


def test_a_file_that_is_no_longer_what_it_was_is_refused(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    put_file(written(tmp_path / "text"), shared / "file.bin")
    file = file_at(shared / "file.bin")
    (shared / "file.bin").write_text("other")
    with pytest.raises(DamagedError, match=r"file\.bin.*: damaged: size or sha256 is not"):
        local_copy(file)
    shared.remove()
    with pytest.raises(PipelineError, match=r"file\.bin.*: is gone"):
        local_copy(file)
    assert file_at(shared / "file.bin") is None


def test_the_last_to_claim_a_folder_owns_it(shared):
    first = (shared / "run").claimed()
    first.require_owner()
    second = (shared / "run").claimed()
    with pytest.raises(PipelineError, match="another process trains here"):
        first.require_owner()
    second.require_owner()
    files.remove(shared / "run")
    with pytest.raises(PipelineError, match="or its work is done"):
        second.require_owner()
    assert (shared / "run").files() == set()


def test_what_is_there_exists_and_what_is_removed_does_not(shared, tmp_path):
    shared.put(tmp_path, written(tmp_path / "a").name)
    assert location.exists(str(shared / "a"))
    assert location.exists(str(tmp_path / "a"))
    files.remove(shared)
    assert not location.exists(str(shared / "a"))
    files.remove(shared)


def test_a_folder_of_one_name_that_is_not_the_same_everywhere_is_found_out(tmp_path):
    here, elsewhere = (Storage.of(f"file://{tmp_path}/{name}") for name in ("here", "elsewhere"))
    with here.write_sentinel() as sentinel:
        here.probe(sentinel)
        with pytest.raises(ConfigError, match="elsewhere is another folder than on the head node"):
            elsewhere.probe(sentinel)
    assert not list((tmp_path / "here").iterdir())


def test_a_connection_is_reused_only_with_the_same_credentials(monkeypatch):
    """Two commands in one process connect each with the keys of its own environment."""
    uri = "s3://bucket/x?region=eu-west-1"
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    first = filesystem.connect(uri)[0]
    monkeypatch.setenv("UNRELATED", "value")
    assert filesystem.connect(uri)[0] is first
    keys = []
    with monkeypatch.context() as patched:
        patched.setattr(filesystem, "_connect", lambda *key: keys.append(key))
        filesystem.connect(uri)
    assert uri in keys[0]
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in repr(keys)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    second = filesystem.connect(uri)[0]
    assert second is not first
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS["AWS_SECRET_ACCESS_KEY"])
    assert filesystem.connect(uri)[0] is first


def test_a_local_file_is_used_where_it_lies(tmp_path):
    path = written(tmp_path / "a.bin")
    assert file_at(path) == local_copy(path) == path
    assert file_at(tmp_path / "none") is None
    assert (files.size_of(path), files.uri_of(path)) == (5, f"file://{tmp_path}/a.bin")
    with files.temporary_copy(path) as found:
        assert found == path
    assert path.exists()


def test_a_remote_file_has_a_size_a_uri_and_a_copy_for_some_time(shared, tmp_path):
    put_file(written(tmp_path / "text"), shared / "b" / "file.bin")
    file = file_at(shared / "b" / "file.bin")
    assert (files.size_of(file), files.uri_of(file)) == (5, str(shared / "b" / "file.bin"))
    with files.temporary_copy(file) as found:
        assert (found.name, found.read_bytes()) == ("file.bin", b"bytes")
    assert not found.parent.exists()


def test_a_local_folder_is_removed_or_left_without_error(tmp_path):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    for _ in range(2):
        files.remove(tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_an_object_store_is_waited_for_ten_minutes():
    policy = filesystem.RETRIES
    assert (policy.max_seconds, policy.max_pause_seconds, policy.max_attempts) == (600, 10, None)
    assert policy.random_pauses


def test_a_folder_that_cannot_hold_copies_is_an_error_of_storage(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(written(tmp_path / "file")))
    file = RemoteFile(RemoteDirectory("s3://bucket/x"), "0" * 64, 5)
    with pytest.raises(StorageError, match=r"dca-gpt-\d+: cannot be written: Not a directory"):
        local_copy(file)


def test_a_google_store_limits_its_own_retries(monkeypatch):
    from pyarrow import fs

    asked = []
    monkeypatch.setattr(fs, "FileSystem", SimpleNamespace(from_uri=asked.append))
    for uri in ("gs://a/b", "gs://a/b?scheme=http", "s3://a/b"):
        filesystem._connect(uri, "digest of this test")
    assert asked == [
        "gs://a/b?retry_limit_seconds=10",
        "gs://a/b?scheme=http&retry_limit_seconds=10",
        "s3://a/b",
    ]


def test_what_counts_was_synced_before_it_had_its_name_and_its_folder_after(tmp_path, monkeypatch):
    part, target = tmp_path / "part", tmp_path / "target"
    part.mkdir()
    (part / "file").write_bytes(b"text")
    inodes = {path.stat().st_ino: path.name for path in (part, part / "file", tmp_path)}
    synced = []
    monkeypatch.setattr(
        files.os, "fsync", lambda f: synced.append((inodes[os.fstat(f).st_ino], target.exists()))
    )
    files.move_into_place(part, target)
    assert synced == [("file", False), ("part", False), (tmp_path.name, True)]
    assert (target / "file").read_bytes() == b"text"
