"""What is ended once a command was killed; tests/pipelines/test_kills.py does so."""

from types import SimpleNamespace

import psutil

from pipelines.cluster.local import watcher

LOGS = "/tmp/ray/session_2026-01-01_00-00-00_000001_{}/logs"


class FakeProcess(SimpleNamespace):
    """A process with these files open, by path their modes."""

    def open_files(self) -> list[SimpleNamespace]:
        if self.files is None:
            raise psutil.AccessDenied
        return [SimpleNamespace(path=path, mode=mode) for path, mode in self.files.items()]


def test_processes_that_write_to_a_log_of_the_command_are_its_clusters(monkeypatch):
    own, other = LOGS.format(12), LOGS.format(123)
    raylet = FakeProcess(files={"/etc/hosts": "r", f"{own}/raylet.out": "a"})
    monitor = FakeProcess(files={f"{own}/raylet.out": "r", f"{own}/log_monitor.log": "r+"})
    others = [
        FakeProcess(files={f"{own}/raylet.out": "r"}),  # tail -f
        FakeProcess(files={f"{other}/raylet.out": "a"}),
        FakeProcess(files={"/tmp/notes.txt": "w"}),
        FakeProcess(files=None),
    ]
    monkeypatch.setattr(psutil, "process_iter", lambda: iter([raylet, *others, monitor]))
    assert watcher._cluster_processes("12") == [raylet, monitor]
