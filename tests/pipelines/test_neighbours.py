"""Several commands on one machine, and what is left of one: a part of `make test-faults`."""

import os
import subprocess
import sys
from statistics import median

import psutil
import pytest

from tests.pipelines.commands import ROOT, WAIT_SECONDS, Folder, assert_whole

pytestmark = pytest.mark.faults
SLOWEST = 6
"""Two sweeps with two threads each on two cores: twice, and what changing places costs. With
threads that spin it is 20 times."""


def speed(folder: Folder, experiment: str) -> float:
    """Bytes per second of a sweep's trials."""
    store = folder.store(experiment)
    histories = [
        store.client.get_metric_history(run.info.run_id, "tokens_per_second")
        for run in store.find("trial")
    ]
    return median(point.value for history in histories for point in history)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a trial has two threads")
def test_two_sweeps_at_once_neither_disturb_nor_starve_each_other(tmp_path, text):
    folder = Folder(tmp_path, text)
    folder.environment.pop("OMP_WAIT_POLICY")  # as for users
    sweep = ("sweep.py", "tiny.yaml", "search.trials=3", "search.scheduler.name=none", "--until")
    threads = ("evaluate", "resources.cpus_per_worker=2", "fit.resources.workers=1")
    several = ("evaluate", "resources.workers=2", "train.tokens=131072")  # under Ray Train
    code, _, err = folder.run_forked(*sweep, *threads, "experiment=alone")
    assert code == 0, err
    commands = {
        name: folder.start(*sweep, *arguments, f"experiment={name}")
        for name, arguments in {"threads": threads, "several": several}.items()
    }
    for name, command in commands.items():
        _, err = command.communicate(timeout=2 * WAIT_SECONDS)
        assert (command.returncode, err) == (0, "")
        store = folder.store(name)
        trials, fits = store.find("trial"), store.find("fit")
        assert [run.data.tags["dca.state"] for run in trials] == ["complete"] * 3
        assert len(fits) == 1
        assert_whole(store, [*trials, *fits])
    assert speed(folder, "threads") > speed(folder, "alone") / SLOWEST


def test_nothing_is_left_of_a_killed_command_after_15_seconds():
    """Nor if its Ray had no time to end in order, as on a busy machine."""
    code = (
        "from pipelines.cluster.connection import connect; import time; connect(); "
        "print('ready', flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE
    ) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == b"ready\n"
        started = psutil.Process(command.pid).children(recursive=True)
        command.kill()
        for process in started:
            if "raylet" in process.name() or "gcs_server" in process.name():
                process.kill()
    assert len(started) > 4
    _, alive = psutil.wait_procs(started, timeout=15)
    assert not alive
