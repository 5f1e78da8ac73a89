"""What nothing needs any more is shown, and deleted when that is asked for."""

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import clean
from pipelines.console import progress
from pipelines.console.updates import OutputMode
from pipelines.search.resume import trial_folder_name
from pipelines.storage import scratch
from pipelines.storage.scratch import abandoned_folders, scratch_folder
from pipelines.tracking.client import RetryingClient
from pipelines.tracking.schema import STATE_TAG, TRIAL_TAG
from tests.pipelines.commands import Folder


@pytest.fixture
def left(store, tmp_path, monkeypatch) -> dict[str, Path]:
    """Folders of storage, by what their runs are."""
    monkeypatch.setattr(clean, "_of_this_machine", lambda: iter(()))
    runs = {kind: store.client.create_run("0").info.run_id for kind in ("done", "gone", "begun")}
    store.client.set_terminated(runs["done"], "FINISHED")
    store.client.delete_run(runs["gone"])
    runs["unknown"] = "0" * 32
    places = {
        "done": tmp_path / "runs" / "fits" / runs["done"],
        "gone": tmp_path / "runs" / "trials" / runs["gone"],
        "begun": tmp_path / "runs" / "fits" / runs["begun"],
        "unknown": tmp_path / "runs" / "trials" / runs["unknown"],
    }
    for path in places.values():
        path.mkdir(parents=True)
        (path / "weights").write_bytes(bytes(3 << 20))
    return places


def test_checkpoints_of_runs_that_may_go_on_or_are_unknown_stay(left, tmp_path):
    folder = Folder(tmp_path)
    code, out, err = folder.run("clean.py")
    assert code == 0, err
    assert out.splitlines() == [
        f"3.0 MiB  {left['gone']}: its run was deleted",
        f"3.0 MiB  {left['done']}: its run has finished",
        "nothing was deleted; to delete all of it: the same command with --delete",
    ]
    assert all(path.exists() for path in left.values())
    code, out, err = folder.run("clean.py", "--delete")
    assert code == 0, err
    assert out.splitlines()[-1] == "2 of 2 deleted"
    assert [name for name, path in left.items() if path.exists()] == ["begun", "unknown"]
    code, out, err = folder.run("clean.py", "--delete")
    assert (code, out) == (0, "there is nothing that nothing needs\n")


STATES = ("complete", "failed", None, "pruned", "deleted", "unknown")
"""Of the trials with a folder of checkpoints, by number."""


@pytest.fixture
def search(store, tmp_path, monkeypatch) -> Path:
    """The folder of a finished search: a trial failed, another one did not end."""
    monkeypatch.setattr(clean, "_of_this_machine", lambda: iter(()))
    run = store.create("search", "search", "search")
    folder = tmp_path / "runs" / "trials" / run
    for number, state in enumerate(STATES):
        (folder / trial_folder_name(number)).mkdir(parents=True)
        if state == "unknown":
            continue
        tags = {TRIAL_TAG: str(number), **({STATE_TAG: state} if state else {})}
        if state == "deleted":
            tags[STATE_TAG] = "failed"
        trial = store.create("trial", f"{run}/{number}", "trial", parent=run, tags=tags)
        if state == "deleted":
            store.client.delete_run(trial)
    store.end(run)
    return folder


def left_of(folder: Path) -> list[int]:
    """The numbers of the trials whose folders are there."""
    return [int(path.name.removeprefix("trial-")) for path in sorted(folder.iterdir())]


def test_trials_that_can_be_run_again_keep_the_checkpoints_of_a_finished_search(search, tmp_path):
    code, out, err = Folder(tmp_path).run("clean.py", "--delete")
    assert (code, out.splitlines()[-1]) == (0, "4 of 4 deleted"), err
    assert left_of(search) == [1, 2]
    code, out, err = Folder(tmp_path).run("clean.py", "--delete")
    assert (code, out) == (0, "there is nothing that nothing needs\n"), err


def test_a_finished_search_without_such_trials_is_deleted_whole(search, store, tmp_path):
    for run in store.children(search.name, "trial"):
        store.tag(run.info.run_id, {STATE_TAG: "pruned"})
    code, out, err = Folder(tmp_path).run("clean.py", "--delete")
    assert (code, out.splitlines()[-1]) == (0, "1 of 1 deleted"), err
    assert not search.exists()


def test_what_a_sweep_has_resumed_since_it_was_listed_stays(search, store, tmp_path, monkeypatch):
    size_of = clean._size_of

    def resumed_meanwhile(place: Path) -> str:
        store.client.update_run(search.name, status="RUNNING")
        return size_of(place)

    monkeypatch.setattr(clean, "_size_of", resumed_meanwhile)
    code, out, _ = Folder(tmp_path).run("clean.py", "--delete")
    assert code == 1
    assert "cannot be deleted: its run is going on again" in out
    assert left_of(search) == [*range(len(STATES))]


def test_what_lies_behind_a_link_stays(left, tmp_path):
    outside = tmp_path / "outside"
    left["gone"].parent.rename(outside)
    left["gone"].parent.symlink_to(outside)
    left["done"].rename(outside / "moved")
    left["done"].symlink_to(outside / "moved")
    code, out, err = Folder(tmp_path).run("clean.py", "--delete")
    assert (code, out) == (0, "there is nothing that nothing needs\n"), err
    assert (outside / left["gone"].name / "weights").exists()
    assert (outside / "moved" / "weights").exists()


def test_what_cannot_be_deleted_is_said_and_the_rest_is(left, tmp_path, monkeypatch):
    rmtree = clean.shutil.rmtree

    def refuse(path: Path) -> None:
        if path == left["gone"]:
            raise PermissionError(13, "Permission denied", str(path))
        rmtree(path)

    monkeypatch.setattr(clean.shutil, "rmtree", refuse)
    code, out, _ = Folder(tmp_path).run("clean.py", "--delete")
    assert code == 1
    assert "its run was deleted; cannot be deleted: Permission denied" in out
    assert "1 of 2 deleted" in out
    assert not left["done"].exists()


def test_what_another_command_deletes_meanwhile_is_no_error(left, tmp_path, monkeypatch):
    walk = os.walk

    def slower(place: Path) -> object:
        for step in walk(place):
            shutil.rmtree(place)
            yield step

    monkeypatch.setattr(clean.os, "walk", slower)
    code, out, err = Folder(tmp_path).run("clean.py", "--delete")
    assert (code, out.splitlines()[-1]) == (0, "2 of 2 deleted"), err
    assert out.startswith(f"0.0 MiB  {left['gone']}: its run was deleted\n")


def test_a_file_that_is_gone_meanwhile_is_no_error(left, tmp_path, monkeypatch):
    rmtree, begun = shutil.rmtree, set[Path]()

    def meet(path: Path) -> None:
        if path not in begun:
            begun.add(path)
            raise FileNotFoundError(2, "No such file or directory", "worker.err")
        rmtree(path)

    monkeypatch.setattr(clean.shutil, "rmtree", meet)
    code, out, err = Folder(tmp_path).run("clean.py", "--delete")
    assert (code, out.splitlines()[-1]) == (0, "2 of 2 deleted"), err
    assert not any(path.exists() for path in begun)


def test_the_lookup_of_runs_is_shown(left, tmp_path, monkeypatch):
    """On a server with thousands of runs it takes minutes."""
    state_of = RetryingClient.state_of

    def slow(client: RetryingClient, run_id: str) -> str | None:
        time.sleep(0.05)
        return state_of(client, run_id)

    monkeypatch.setattr(RetryingClient, "state_of", slow)
    monkeypatch.setattr(progress, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(clean, "Progress", lambda **_: progress.Progress(OutputMode.JSON))
    code, out, err = Folder(tmp_path).run("clean.py")
    assert code == 0, err
    assert re.search(r'"text": "looking for what nothing needs(: run 1 of 4)?, 0:00"', out)


def test_a_place_without_storage_or_store_has_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(clean, "_of_this_machine", lambda: iter(()))
    code, out, err = Folder(tmp_path).run("clean.py")
    assert (code, out) == (0, "there is nothing that nothing needs\n"), err
    (tmp_path / "runs" / "fits" / "a").mkdir(parents=True)
    code, out, err = Folder(tmp_path).run("clean.py")
    assert (code, out) == (2, "")
    assert "there is no " in err
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.process
def test_a_temporary_folder_is_abandoned_once_its_process_was_killed(tmp_path, monkeypatch):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from pipelines.storage.scratch import scratch_folder\n"
        "with scratch_folder(Path(sys.argv[1])): print('made', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        (made,) = tmp_path.iterdir()
        now = time.time()
        monkeypatch.setattr(scratch.time, "time", lambda: now + 3600)
        assert abandoned_folders(tmp_path) == []
        process.kill()
    assert abandoned_folders(tmp_path) == [made]
    (tmp_path / f"{scratch.PREFIX}link").symlink_to(made)
    (tmp_path / f"{scratch.PREFIX}file").touch()
    assert abandoned_folders(tmp_path) == [made]
    monkeypatch.setattr(scratch.time, "time", lambda: now)
    assert abandoned_folders(tmp_path) == []  # it may not be locked yet
    monkeypatch.setattr(scratch.os, "getuid", lambda: os.geteuid() + 1)
    monkeypatch.setattr(scratch.time, "time", lambda: now + 3600)
    assert abandoned_folders(tmp_path) == []


def test_a_temporary_folder_is_gone_after_its_block(tmp_path):
    with scratch_folder(tmp_path) as made:
        (made / "file").touch()
        assert made.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_folder_may_lie_where_there_are_no_locks(tmp_path, monkeypatch):
    def unsupported(*_) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(scratch.fcntl, "flock", unsupported)
    now = time.time()
    monkeypatch.setattr(scratch.time, "time", lambda: now + 3600)
    with scratch_folder(tmp_path) as made:
        assert made.parent == tmp_path
        assert abandoned_folders(tmp_path) == []  # its process cannot be seen
    assert list(tmp_path.iterdir()) == []
