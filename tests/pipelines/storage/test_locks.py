"""Locks among processes: who holds one is named, and its file goes with it."""

import errno
import fcntl
import os
import platform
import threading
from pathlib import Path

import pytest

from pipelines.console.errors import PipelineError, StorageError
from pipelines.storage import locks
from pipelines.storage.locks import hold_lock


def busy(holder: str) -> str:
    return f"a: busy ({holder})"


def test_a_wait_ends_with_the_holders_process_and_command_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("A_TOKEN", "pytest-or-python")
    path = tmp_path / "a.lock"
    with hold_lock(path, busy, wait_seconds=0):
        with (
            pytest.raises(PipelineError, match=rf"a: busy \(process {os.getpid()}: \S*python.*\)"),
            hold_lock(path, busy, wait_seconds=0.01),
        ):
            pytest.fail("it is held")
        assert path.read_text() == f"{os.getpid()} {platform.node()}\n"
        assert path.stat().st_mode & 0o777 == 0o600  # who can open it can lock it
    assert list(tmp_path.iterdir()) == []


def test_a_long_wait_says_for_whom_again_and_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(locks, "SILENT_SECONDS", 0.01)
    monkeypatch.setattr(locks, "REPEAT_SECONDS", 0.01)
    path = tmp_path / "a.lock"
    with (
        hold_lock(path, busy, wait_seconds=0),
        pytest.raises(PipelineError),
        hold_lock(path, busy, wait_seconds=0.035),
    ):
        pytest.fail("it is held")
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 3
    assert all(f"waits for process {os.getpid()}: " in text for text in texts)


@pytest.mark.parametrize(
    ("text", "holder"),
    [
        ("12 elsewhere\n", "process 12 on elsewhere"),
        (f"999999999 {platform.node()}\n", "process 999999999"),
        ("", "process unknown"),
        ("x", "process x"),
    ],
)
def test_another_holder_is_named_as_well_as_it_is_known(text, holder, tmp_path):
    path = tmp_path / "a.lock"
    with hold_lock(path, busy, wait_seconds=0, keep=True):
        path.write_text(text)
        with (
            pytest.raises(PipelineError) as refused,
            hold_lock(path, busy, wait_seconds=0),
        ):
            pytest.fail("it is held")
    assert str(refused.value) == busy(holder)
    assert path.exists()


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_linked_as_a_lock_is_not_written(tmp_path, keep):
    other = tmp_path / "other"
    other.write_text("kept")
    os.link(other, tmp_path / "a.lock")
    with (
        hold_lock(tmp_path / "a.lock", busy, wait_seconds=0, keep=keep),
        pytest.raises(PipelineError),
        hold_lock(tmp_path / "a.lock", busy, wait_seconds=0),
    ):
        pytest.fail("it is held")
    assert other.read_text() == "kept"
    (tmp_path / "b.lock").symlink_to(other)
    with (
        pytest.raises(StorageError, match=r"b\.lock: cannot be locked: .*symbolic"),
        hold_lock(tmp_path / "b.lock", busy, wait_seconds=0),
    ):
        pytest.fail("it was followed")
    assert other.read_text() == "kept"


def test_threads_that_wait_for_a_lock_whose_file_is_removed_never_hold_it_together(tmp_path):
    inside, most = 0, []

    def work() -> None:
        nonlocal inside
        for _ in range(20):
            with hold_lock(tmp_path / "a.lock", busy, wait_seconds=30):
                inside += 1
                most.append(inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 80
    assert list(tmp_path.iterdir()) == []


def test_after_a_killed_process_its_lock_is_free(tmp_path):
    path = tmp_path / "a.lock"
    path.write_text("999999999 here\n")
    with hold_lock(path, busy, wait_seconds=0):
        assert path.read_text().startswith(f"{os.getpid()} ")


def test_a_place_without_locks_is_named_and_a_full_disk_needs_no_holder(tmp_path, monkeypatch):
    path = tmp_path / "a.lock"

    def unsupported(*_) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    with monkeypatch.context() as patch, pytest.raises(StorageError) as error:
        patch.setattr(fcntl, "flock", unsupported)
        with hold_lock(path, busy, wait_seconds=0):
            pytest.fail("it is not locked")
    assert str(error.value) == f"{path}: cannot be locked: Operation not supported"

    def full(*_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with (
        hold_lock(path, busy, wait_seconds=0),
        pytest.raises(PipelineError, match=r"^a: busy \(process unknown\)$"),
        hold_lock(path, busy, wait_seconds=0),
    ):
        pytest.fail("it is held")
