"""Which folders of Ray clusters are not in use any more."""

import os
import socket
import subprocess
from types import SimpleNamespace

import pytest

from pipelines.cluster.local import sessions


def test_sessions_that_a_process_names_run(tmp_path, monkeypatch):
    ended, runs, begins = (
        tmp_path / f"session_2026-01-01_00-00-00_000001_{n}"
        for n in (10**8, 10**8 + 1, os.getpid())
    )
    for path in (ended, runs, begins):
        path.mkdir()
    (tmp_path / "session_2026-01-01_00-00-00_000001_8").symlink_to(ended)
    monkeypatch.setattr(sessions, "session_folder", lambda: tmp_path)
    raylet = SimpleNamespace(info={"cmdline": ["raylet", f"--folder={runs}/sockets"]})
    monkeypatch.setattr(
        sessions, "_processes", lambda: [raylet, SimpleNamespace(info={"cmdline": None})]
    )
    assert sessions.ended_sessions() == [ended]


def test_the_next_command_removes_what_is_surely_abandoned(tmp_path, monkeypatch):
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    prefix = "session_2026-01-01_00-00-00_000001"
    names = (f"{prefix}_{ended.pid}", f"{prefix}_{os.getpid()}", f"{prefix}_none")
    for name in names:
        (tmp_path / name / "sockets").mkdir(parents=True)
    monkeypatch.setattr(sessions, "session_folder", lambda: tmp_path)
    monkeypatch.setattr(sessions, "_processes", list)
    monkeypatch.setattr(sessions, "abandoned_folders", lambda _: [])
    monkeypatch.setattr(sessions, "_answers", lambda path: path.name == "raylet")
    (tmp_path / names[0] / "sockets" / "raylet").touch()
    sessions.remove_leftovers()
    assert len(list(tmp_path.iterdir())) == 3  # a container has other processes, and the sockets
    (tmp_path / names[0] / "sockets" / "raylet").rename(tmp_path / names[0] / "sockets" / "gone")
    sessions.remove_leftovers()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


@pytest.mark.server
def test_a_process_that_is_too_busy_to_accept_a_connection_answers(tmp_path):
    path = tmp_path / "raylet"
    assert not sessions._answers(path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert not sessions._answers(path)
        server.listen(0)
        assert sessions._answers(path)  # that connection waits for ever
        assert sessions._answers(path)
    assert not sessions._answers(path)
