import getpass
import os
import subprocess
from pathlib import Path

import pytest

from pipelines.tracking import provenance as module
from pipelines.tracking.provenance import provenance

STATUS = ("status", "--porcelain", "--", *module.CODE)
ANSWERS = {("rev-parse", "HEAD"): "c0ffee\n", STATUS: " M a.py\n"}


@pytest.fixture
def git(monkeypatch) -> dict[tuple[str, ...], str]:
    """What git prints; without an entry it fails."""
    monkeypatch.delenv(module.COMMIT_VARIABLE, raising=False)
    answers = dict(ANSWERS)

    def run(command, **options):
        assert command[0] == "git"
        assert options == {**WANTED, "cwd": options["cwd"]}
        found = answers.get(tuple(command[1:]))
        return subprocess.CompletedProcess(command, 128 if found is None else 0, found or "", "")

    monkeypatch.setattr(module.subprocess, "run", run)
    return answers


WANTED = {"capture_output": True, "text": True, "timeout": 10}


def test_a_commit_is_known_with_whether_files_differ_from_it(git):
    tags = provenance()
    assert (tags[module.COMMIT_TAG], tags[module.DIRTY_TAG]) == ("c0ffee", "true")
    git[STATUS] = ""
    assert provenance()[module.DIRTY_TAG] == "false"


def test_only_changes_of_the_code_that_runs_count(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROOT", tmp_path)
    made = [tmp_path / name for name in ("notes.md", "dca/a.py", "dca/__pycache__/a.pyc")]
    for path in made:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    own = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "dca/a.py"], ["commit", "-qm", "a"]):
        subprocess.run([*own, *command], cwd=tmp_path, check=True)
    assert provenance()[module.DIRTY_TAG] == "false"
    (tmp_path / "dca" / "new.py").touch()  # another kind of model, for example
    assert provenance()[module.DIRTY_TAG] == "true"


def test_without_a_repository_the_commit_is_that_of_the_environment(git, monkeypatch):
    git.clear()
    assert not {module.COMMIT_TAG, module.DIRTY_TAG} & provenance().keys()
    monkeypatch.setenv(module.COMMIT_VARIABLE, "beef")
    tags = provenance()
    assert tags[module.COMMIT_TAG] == "beef"
    assert module.DIRTY_TAG not in tags


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)])
def test_git_that_is_missing_or_hangs_is_no_error(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(module.subprocess, "run", fail)
    monkeypatch.setitem(os.environ, module.COMMIT_VARIABLE, "")
    assert module.COMMIT_TAG not in provenance()


@pytest.mark.parametrize("error", [KeyError("uid not found"), OSError("no username set")])
def test_a_user_without_a_name_is_a_number(error, monkeypatch):
    def fail() -> str:
        raise error

    monkeypatch.setattr(getpass, "getuser", fail)
    assert module.user() == str(os.getuid())


def test_a_process_has_ended_only_if_it_is_of_this_host_and_none_has_its_id(monkeypatch):
    host, number, started = module.this_process().split()
    ended = module.process_has_ended
    assert not ended(f"{host} {number} {started}")
    assert ended(f"{host} {number} {int(started) + 1}")
    assert not ended(f"x{host} {number} {int(started) + 1}")
    assert ended(f"{host} {10**30} 1")
    monkeypatch.setattr(module, "_start_of", lambda process: int(Path("/none").read_text()))
    assert not ended(f"{host} {number} {started}")  # as of another user's, with hidepid=2
    assert ended(f"{host} 4194999 1")
