"""Which folders of Ray clusters are not in use any more."""

import os
from types import SimpleNamespace

from pipelines.cluster import sessions


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
