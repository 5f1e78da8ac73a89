"""Failures while commands run, one each: killed processes, disks that take no file, a lock."""

import math
import re
import resource
import signal
import sqlite3
import time
from collections import Counter

import pytest

from pipelines.training import checkpoint, loop
from tests.pipelines.commands import TRIAL, Folder, assert_whole, below, training, wait_until
from tests.pipelines.packages import isolated_forked
from tests.pipelines.training.runs import forge

SEARCH = ("sweep.py", "tiny.yaml", "--until", "search")
ONE_TRIAL = "search.trials=1"
QUICK = (*SEARCH, "train.tokens=16384", "search.trials=2")
"""Of 64 steps each, evaluated at every eighth."""
SHORT = ("train.py", "tiny.yaml", "train.tokens=8192", "train.evals=2")


def states(folder: Folder) -> Counter:
    return Counter(run.data.tags["dca.state"] for run in folder.trials())


@pytest.mark.ray
@pytest.mark.faults  # a minute
def test_a_trial_that_always_crashes_is_recorded_with_its_reason(tmp_path, text):
    """One at a time, so that it is the first that is killed each time."""
    folder = Folder(tmp_path, text)
    process = folder.start(
        *(*SEARCH, "search.trials=2", "search.scheduler.name=none", "failures.retries=1"),
        *("resources.cpus_per_worker=2", "train.tokens=327680", "train.evals=32"),
    )
    first = lambda: sorted(folder.path.glob("runs/trials/*/trial-0000/0*"))  # noqa: E731
    newest = ""
    for _ in range(2):
        wait_until(lambda: first() and first()[-1].name > newest, process)  # noqa: B023
        newest = first()[-1].name
        below(process, *TRIAL)[0].kill()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert len(re.findall("trial 0 crashed: its process died", out)) == 1
    assert states(folder) == {"failed": 1, "complete": 1}
    by_number = {run.data.tags["dca.trial"]: run for run in folder.trials()}
    assert by_number["0"].info.status == "FAILED"
    assert by_number["0"].data.tags["dca.reason"].startswith("its process died")
    assert "best_val_bits_per_byte" not in by_number["0"].data.metrics
    assert "best_val_bits_per_byte" in by_number["1"].data.metrics


def test_a_trial_that_crashes_goes_on_from_its_checkpoint(tmp_path, text, local_tune):
    """Without Ray: what the search does with the end of a trial's process."""
    folder = Folder(tmp_path, text)
    local_tune.crashes = {1: MemoryError("no room")}
    code, out, err = folder.run(*QUICK, "search.scheduler.name=none")
    assert code == 0, err
    assert "trial 1 crashed: MemoryError: no room" in out
    assert "(retry 1 of 2)" in out
    assert "trial 1: resumes from step 8/64" in out
    assert states(folder) == {"complete": 2}
    assert_whole(folder.store(), folder.trials())


@pytest.mark.extended
@pytest.mark.process
def test_invalid_points_are_no_trials_and_the_result_is_the_last_word(
    tmp_path, text, local_tune, monkeypatch
):
    """Of the four points three are valid, and each of them is run once."""
    isolated_forked(monkeypatch)
    folder = Folder(tmp_path, text)
    space = "search.space={model.dim: {choice: [48, 64]}, model.heads: {choice: [2, 3]}}"
    changes = ("model.dim=48", "model.heads=3", "train.tokens=4096", "train.evals=2", "seed=1")
    code, out, err = folder.run("sweep.py", "tiny.yaml", *changes, space, "search.trials=9")
    assert code == 0, err
    assert "the space has no more valid points than for 3 trials" in out
    assert out.count("dim / heads must be an even number, got 64 / 3") == 1
    assert "proposals that were not run: " in out
    assert "crashed" not in out
    assert sum(states(folder).values()) == 3
    assert "report.html" in out


def test_ctrl_c_in_a_search_loses_no_trial(tmp_path, text, local_tune):
    folder = Folder(tmp_path, text)
    command = (*QUICK, "search.scheduler.name=none")
    local_tune.interrupt_at = 11
    code, _, err = folder.run(*command)
    assert code == 130
    assert "run the same command again to go on" in err
    assert sorted(run.info.status for run in folder.trials()) == ["FINISHED", "KILLED"]
    local_tune.interrupt_at = math.inf
    code, out, err = folder.run(*command)
    assert code == 0, err
    assert "resumes from step" in out
    assert states(folder) == {"complete": 2}
    assert_whole(folder.store(), folder.trials())


@pytest.mark.ray
@pytest.mark.faults  # half a minute
def test_a_trial_that_takes_too_long_goes_on_from_its_last_checkpoint(tmp_path, text):
    folder = Folder(tmp_path, text)
    code, out, err = folder.run_forked(
        *SEARCH,
        ONE_TRIAL,
        "train.evals=1",
        "train.tokens=100000000",
        "failures={timeout_seconds: 3, checkpoint_seconds: 1, retries: 1}",
    )
    assert code == 1
    reason = "no evaluation within failures.timeout_seconds = 3"
    assert f"trial 0 crashed: {reason}" in out
    assert f"trial 0: {reason}" in err
    assert folder.trials()[0].data.tags["dca.reason"] == reason


@pytest.mark.usefixtures("local_tune")
def test_a_disk_that_refuses_stops_the_sweep_and_no_trial_is_lost(tmp_path, text):
    folder = Folder(tmp_path, text)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "trials").write_text("in the way")
    code, _, err = folder.run(*QUICK)
    assert code == 1
    assert re.fullmatch(r"trial \d: .+/runs/trials/.+: cannot be written: .+\n", err)
    assert {run.info.status for run in folder.trials()} == {"KILLED"}
    (tmp_path / "runs" / "trials").unlink()
    code, _, err = folder.run(*QUICK)
    assert code == 0, err
    assert sum(states(folder).values()) == 2
    assert states(folder)["failed"] == 0


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_is_one_clear_line(tmp_path, text):
    """A limit on the size of files stands in for a disk with no room left."""
    folder = Folder(tmp_path, text)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**24, limits[1]))
    try:
        code, _, err = folder.run(
            "train.py", "tiny.yaml", "model.dim=256", "model.depth=3", "train.evals=32"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1, err
    assert re.fullmatch(r".+/runs/fits/.+: the checkpoint cannot be written: .+\n", err)
    assert not list(folder.path.glob("runs/fits/*/.0*"))


@pytest.mark.ray
@pytest.mark.faults  # two minutes
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_workers_that_die_and_a_driver_that_dies_leave_no_trace_in_the_weights(
    tmp_path, text, strategy
):
    """Bitwise: two workers under Ray, one and the driver killed, then Ctrl-C; or undisturbed."""
    changes = ("resources.workers=2", f"resources.strategy={strategy}", "train.evals=32")
    command = ("train.py", "tiny.yaml", *changes)
    calm, disturbed = (tmp_path / name for name in ("undisturbed", "disturbed"))
    for path in (calm, disturbed):
        path.mkdir()
    undisturbed = Folder(calm, text)
    code, _, err = undisturbed.run_forked(*command)
    assert code == 0, err
    folder = Folder(disturbed, text)
    saved = lambda: list(folder.path.glob("runs/fits/*/0*"))  # noqa: E731
    process = folder.start(*command)
    wait_until(saved, process)
    below(process, "ray::RayTrainWorker")[-1].kill()
    before = max(saved())
    wait_until(lambda: max(saved()) > before, process)
    process.kill()
    process.communicate(timeout=60)
    before = max(saved())
    process = folder.start(*command)
    wait_until(lambda: max(saved()) > before, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"run the same command again to go on:\n +python \S+/train.py tiny.yaml", err)
    code, out, err = folder.run_forked(*command)
    assert code == 0, err
    assert "resumes from step" in out
    assert training(folder) == training(undisturbed)
    assert_whole(folder.store(), folder.store().find("train"))


@pytest.mark.extended
@pytest.mark.process
def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(tmp_path, text):
    folder = Folder(tmp_path, text)
    process = folder.start("train.py", "tiny.yaml", "train.tokens=98304", "train.evals=24")
    saved = lambda: sorted(folder.path.glob("runs/fits/*/0*"))  # noqa: E731
    wait_until(lambda: len(saved()) >= 2, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again to go on" in err
    newest = saved()[-1]
    forge(newest)  # its digests are right: it is not signed with the key of its run
    code, out, err = folder.run("train.py", "tiny.yaml", "train.tokens=98304", "train.evals=24")
    assert code == 0, err
    damaged = (
        f"{newest}: damaged checkpoint: SIGNATURE: missing, or not made with the key of its run"
    )
    assert f"{damaged}; not used" in out
    assert "resumes from step" in out
    assert_whole(folder.store(), folder.store().find("train"))


@pytest.mark.slow
def test_what_was_replaced_in_storage_before_it_is_packaged_is_no_model(
    tmp_path, text, monkeypatch
):
    """By who can write there alone: the digests of what it put there are right."""
    train, folder = loop.train, Folder(tmp_path, text)

    def attacked(run, splits, checkpoints, log, **given):
        yield from train(run, splits, checkpoints, log, **given)
        for path in checkpoint.list_checkpoints(checkpoints):
            forge(path)

    monkeypatch.setattr(loop, "train", attacked)
    code, out, err = folder.run(*SHORT)
    assert code == 1
    assert "SIGNATURE: missing, or not made with the key of its run; using the next best" in out
    assert re.fullmatch(r".+/runs/fits/.+: no checkpoint is sound; --fresh trains again\n", err)
    assert not list(folder.path.glob("runs/artifacts/models/*"))
    monkeypatch.undo()
    code, out, err = folder.run(*SHORT)  # none is left to go on from
    assert code == 0, err
    assert "resumes from" not in out


@pytest.mark.faults  # longer than the 20 s that SQLite waits by itself
def test_a_locked_database_is_waited_for_while_training_goes_on(tmp_path, text):
    folder = Folder(tmp_path, text)
    process = folder.start("train.py", "tiny.yaml", "train.evals=32")
    wait_until(lambda: list(folder.path.glob("runs/fits/*/0*")), process)
    with sqlite3.connect(folder.path / "mlflow.db", isolation_level=None) as database:
        database.execute("BEGIN EXCLUSIVE")
        locked, last = time.monotonic(), "runs/fits/*/00000256"
        wait_until(lambda: list(folder.path.glob(last)), process)
        wait_until(lambda: time.monotonic() > locked + 30, process)
        database.execute("COMMIT")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "database is locked; trying again" in err
    assert_whole(folder.store(), folder.store().find("train"))
