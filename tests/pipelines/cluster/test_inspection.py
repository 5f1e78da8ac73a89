"""What fits a cluster, and which clusters are refused before anything starts."""

import os
import signal
from contextlib import suppress
from unittest.mock import Mock

import pytest
import ray
from ray._private import ray_constants, utils

from pipelines.cluster import connection
from pipelines.cluster.capacity import Node, max_concurrent_jobs, require_capacity
from pipelines.console.errors import ConfigError, PipelineError
from pipelines.training.config import Resources
from tests.pipelines.commands import Folder

TWO_SMALL = [Node("a", 3), Node("b", 3)]


@pytest.mark.parametrize(
    ("nodes", "resources", "expected"),
    [
        (TWO_SMALL, Resources(), 6),
        (TWO_SMALL, Resources(workers=2, cpus_per_worker=2), 1),  # 6 CPUs, but a worker on each
        (TWO_SMALL, Resources(workers=3, cpus_per_worker=2), 0),
        (TWO_SMALL, Resources(workers=4), 1),
        (TWO_SMALL, Resources(cpus_per_worker=4), 0),
        ([Node("a", 64, 2)], Resources(gpus_per_worker=0.5), 4),
        ([Node("a", 64, 2)], Resources(gpus_per_worker=0.4), 4),  # two on a GPU, never across
        ([Node("a", 64, 2)], Resources(gpus_per_worker=0.1), 20),
        ([Node("a", 64, 3), Node("b", 64, 3)], Resources(gpus_per_worker=2), 2),
        ([Node("a", 64, 3), Node("b", 1, 3)], Resources(gpus_per_worker=1, cpus_per_worker=4), 3),
        ([Node("head", 0), Node("a", 2)], Resources(workers=2), 1),
        (TWO_SMALL, Resources(workers=(2, 100)), 3),
    ],
)
def test_a_worker_fits_one_node_and_one_gpu_or_whole_ones(nodes, resources, expected):
    assert max_concurrent_jobs(nodes, resources) == expected


def test_what_does_not_fit_is_refused_with_the_nodes():
    with pytest.raises(ConfigError) as refused:
        require_capacity(TWO_SMALL, Resources(workers=3, cpus_per_worker=2), "fit.resources")
    assert str(refused.value) == (
        "fit.resources: workers=3 of 2 CPUs each; "
        "there is room for 2 of them on a (3 CPUs), b (3 CPUs)"
    )


def test_several_nodes_with_a_file_as_store_or_a_local_folder_are_refused(
    two_nodes, tmp_path, text
):
    folder = Folder(tmp_path, text)
    folder.environment["RAY_ADDRESS"] = two_nodes
    before = sorted(tmp_path.iterdir())
    code, out, err = folder.run("sweep.py", "tiny.yaml")
    assert (code, out) == (2, "")
    tracking, storage = err.splitlines()
    assert tracking.startswith(f"MLFLOW_TRACKING_URI=sqlite:///{tmp_path}/mlflow.db: a file serves")
    assert "the cluster has 2" in tracking
    assert "mlflow server" in tracking
    assert storage.startswith("storage: runs is a folder of one machine, the cluster has 2")
    assert "storage=s3://" in storage
    assert sorted(tmp_path.iterdir()) == before


def test_a_job_must_be_given_store_storage_and_commit(tmp_path, text):
    folder = Folder(tmp_path, text)
    folder.environment["RAY_JOB_CONFIG_JSON_ENV_VAR"] = "{}"
    code, out, err = folder.run("sweep.py", "tiny.yaml", "--dry-run")
    assert (code, out) == (2, "")
    assert [line.partition(":")[0] for line in err.splitlines()] == [
        "MLFLOW_TRACKING_URI",
        "storage",
        "DCA_GPT_COMMIT",
    ]


def test_trials_have_one_number_of_workers_and_a_fit_may_have_a_range(tmp_path, text):
    folder = Folder(tmp_path, text)
    code, _, err = folder.run("sweep.py", "tiny.yaml", "resources.workers=[1,2]", "--dry-run")
    assert code == 2
    assert err.startswith("resources.workers: expected one number, got 1 to 2: ")
    for wrong, expected in (("[2,1]", "expected [min, max]"), ("[1,99]", "workers = 99, got")):
        code, _, err = folder.run("train.py", "tiny.yaml", f"resources.workers={wrong}")
        assert code == 2
        assert expected in err


def test_ray_that_does_not_start_is_one_line_with_its_reason(monkeypatch):
    def init(**settings: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(connection, "_watchers", [object()])  # none is started
    with pytest.raises(PipelineError, match=r"^Ray did not start on this machine: .* timed out"):
        connection.connect()


@pytest.mark.parametrize("early", [False, True])
def test_a_signal_while_ray_starts_is_the_commands(monkeypatch, early):
    """Ray's own handler, in C, would print where each thread was, and may abort the process."""
    received: list[int] = []

    def init(**settings: object) -> None:
        assert ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER  # a test in compat starts one
        with suppress(ValueError):  # not in a thread
            utils.set_sigterm_handler(lambda *_: received.append(-1))
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: early)
    monkeypatch.setattr(ray, "nodes", list)
    monkeypatch.setattr(connection, "start_watcher", Mock)
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with connection.ray_session():
            if early:
                connection.start_early()
            connection.connect()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
    assert not ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER
