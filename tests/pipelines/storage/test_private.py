"""Folders of this user alone, in places that other users of the machine can write to."""

import os
import tempfile
from pathlib import Path

import pytest

from pipelines.cluster.connection import _own_token, session_folder, short_session_folder
from pipelines.cluster.inspection import inspect_cluster
from pipelines.compat.ray import MAX_FOLDER_BYTES, TOKEN_FILE, TOKEN_VARIABLES
from pipelines.console.errors import ConfigError, StorageError
from pipelines.storage import private
from pipelines.storage.private import lock_folder, make_private, private_folder


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def shared(tmp_path, monkeypatch) -> Path:
    """The folder for temporary files, in place of /tmp too."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(private, "SHARED", str(tmp_path))
    return tmp_path


def test_locks_and_copies_are_in_a_folder_of_the_user_alone(shared, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: pytest.fail("a user may have no name"))
    folder = private_folder()
    assert folder == private_folder() == shared / f"dca-gpt-{os.getuid()}"
    assert lock_folder() == folder / "locks"
    assert (mode(folder), mode(folder / "locks")) == (0o700, 0o700)


def test_locks_are_where_they_are_whatever_the_environment_is(
    shared, tmp_path_factory, monkeypatch
):
    """A login, cron and a batch system have other folders for temporary files."""
    folder = lock_folder()
    login = tmp_path_factory.mktemp("login")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(login))
    monkeypatch.setattr(tempfile, "tempdir", str(login))
    assert lock_folder() == folder == shared / f"dca-gpt-{os.getuid()}" / "locks"
    monkeypatch.setattr(private, "SHARED", "/proc/none")  # where it cannot be written
    assert lock_folder().parent == private_folder() == login / f"dca-gpt-{os.getuid()}"


def test_the_locks_of_a_file_are_beside_it_if_no_other_user_can_write_there(shared, monkeypatch):
    own = shared / "own"
    own.mkdir(mode=0o755)
    assert lock_folder(own / "mlflow.db") == own
    (shared / "link").symlink_to(own)
    (shared / "file").touch()
    for other in ("link", "none", "file"):
        assert lock_folder(shared / other / "mlflow.db") == lock_folder()
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "access", lambda path, mode: path != own
        )  # as on a disk that is read only
        assert lock_folder(own / "mlflow.db") == lock_folder()
    own.chmod(0o775)
    assert lock_folder(own / "mlflow.db") == lock_folder()
    own.chmod(0o755)
    stat = Path.lstat
    monkeypatch.setattr(os, "getuid", lambda: stat(shared).st_uid + 1)  # as after `sudo`
    with pytest.raises(ConfigError, match=f"^{shared}/dca-gpt-.*: expected a folder of this user"):
        lock_folder(own / "mlflow.db")  # not beside it, and this process cannot be another user's


def plant_open(path: Path) -> None:
    path.mkdir()
    path.chmod(0o755)


def plant_link(path: Path) -> None:
    path.with_name("elsewhere").mkdir(mode=0o700)
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("plant", [plant_open, plant_link, Path.touch])
def test_what_another_user_may_have_put_there_is_refused_in_one_line(plant, shared):
    path = shared / f"dca-gpt-{os.getuid()}"
    plant(path)
    with pytest.raises(ConfigError) as refused:
        lock_folder()
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_another_users_folder_is_refused(shared, monkeypatch):
    private_folder()
    owner = os.geteuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    (shared / f"dca-gpt-{owner}").rename(shared / f"dca-gpt-{owner + 1}")
    with pytest.raises(ConfigError, match="expected a folder of this user alone"):
        private_folder()


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/proc/none")
    with pytest.raises(StorageError, match=r"/proc/none/dca-gpt-\d+: cannot be written: No such"):
        private_folder()


def test_a_new_folder_is_private_and_one_that_exists_stays_as_it_is(tmp_path):
    shared = tmp_path / "team"
    plant_open(shared)
    make_private(shared / "a" / "b")
    make_private(shared / "a" / "b")
    assert [mode(path) for path in (shared, shared / "a", shared / "a/b")] == [0o755, 0o700, 0o700]
    (shared / "file").touch()
    with pytest.raises(OSError, match="exists"):
        make_private(shared / "file")


def test_sockets_of_ray_fit_under_a_long_folder_for_temporary_files(shared, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    assert session_folder() == Path(f"/tmp/dca-gpt-{os.getuid()}/ray")
    monkeypatch.setattr(tempfile, "tempdir", str(shared / ("a" * 100)))
    (shared / ("a" * 100)).mkdir()
    assert session_folder() == Path(f"/tmp/dca-gpt-{os.getuid()}/ray")
    assert len(str(session_folder())) <= MAX_FOLDER_BYTES
    with tempfile.TemporaryDirectory(prefix="éééééé", dir="/tmp") as few_letters:
        monkeypatch.setattr(tempfile, "tempdir", few_letters)
        assert len(f"{few_letters}/dca-gpt-{os.getuid()}/ray") <= MAX_FOLDER_BYTES
        assert short_session_folder() == Path(f"/tmp/dca-gpt-{os.getuid()}/ray")
    monkeypatch.setenv("RAY_TMPDIR", "/elsewhere")
    assert session_folder() == Path(f"/elsewhere/dca-gpt-{os.getuid()}/ray")
    monkeypatch.chdir("/tmp")
    monkeypatch.setenv("RAY_TMPDIR", "rt")
    assert session_folder() == Path(f"/tmp/rt/dca-gpt-{os.getuid()}/ray")
    with monkeypatch.context() as patch:
        patch.setenv("RAY_TMPDIR", "/" + "é" * 20)
        with pytest.raises(
            ConfigError, match=r"RAY_TMPDIR: /é+/dca-gpt-\d+/ray: expected at most 38"
        ):
            short_session_folder()
        patch.setenv("RAY_TMPDIR", "/proc/none")
        with pytest.raises(ConfigError, match=r"^RAY_TMPDIR: /proc/none: "):
            short_session_folder()
        patch.setenv("RAY_TMPDIR", "/" + "é" * 20)
        patch.delenv("RAY_ADDRESS", raising=False)
        with pytest.raises(ConfigError, match="RAY_TMPDIR"):  # before anything starts
            inspect_cluster("runs")
        patch.delenv("RAY_TMPDIR")
        patch.setattr("tempfile.tempdir", "/proc/none")
        with pytest.raises(ConfigError, match=r"^RAY_TMPDIR: /proc/none/.*; expected a folder"):
            short_session_folder()


def test_the_password_of_a_cluster_is_private(shared, monkeypatch):
    home = shared / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    umask = os.umask(0o022)
    try:
        assert _own_token() == {}
    finally:
        os.umask(umask)
    own = home / TOKEN_FILE
    password = own.read_text()
    assert len(password) == 64
    assert own.stat().st_mode & 0o777 == 0o600
    own.chmod(0o644)  # as Ray makes it
    assert _own_token() == {}
    assert own.stat().st_mode & 0o777 == 0o600
    assert own.read_text() == password
    assert list(own.parent.iterdir()) == [own]
    own.unlink()
    own.parent.rmdir()
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: (mode == os.F_OK or path != home) and access(path, mode)
    )
    (variable,) = _own_token().items()
    path = private_folder() / "ray-token"
    assert variable == ("RAY_AUTH_TOKEN_PATH", str(path))
    password = path.read_text()
    assert len(password) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    assert _own_token() == dict([variable])
    assert path.read_text() == password
    monkeypatch.setenv("HOME", str(home / "none"))
    assert _own_token() == dict([variable])
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert _own_token() == {}
