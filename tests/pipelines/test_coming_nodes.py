"""Sweeps on a cluster whose nodes come and go meanwhile: a part of `make test-faults`.

The nodes are raylets of this machine; machines of their own are in test_cluster.py.
"""

from collections.abc import Iterator

import pytest
from ray.cluster_utils import Cluster

from tests.pipelines.commands import (
    WAIT_SECONDS,
    Folder,
    assert_whole,
    tracking_server,
    wait_until,
)

pytestmark = pytest.mark.faults
SWEEP = (
    *("sweep.py", "tiny.yaml", "train.tokens=1048576", "train.evals=64", "failures.retries=9"),
    *("search.scheduler.name=none", "search.trials=4", "--until"),
)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that trains nothing."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        yield made
    finally:
        made.shutdown()


@pytest.fixture
def folder(cluster, text, tmp_path) -> Iterator[Folder]:
    found = Folder(tmp_path, text)
    with (tmp_path / "tiny.yaml").open("a") as file:
        file.write(f"storage: file://{tmp_path}/shared\n")
    with tracking_server(tmp_path) as address:
        found.environment |= {"RAY_ADDRESS": cluster.address, "MLFLOW_TRACKING_URI": address}
        yield found


def running(folder: Folder) -> int:
    """Trials that have begun and not ended."""
    return sum(
        "tokens" in run.data.metrics and "dca.state" not in run.data.tags for run in folder.trials()
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_nodes_that_join_a_search_are_used_and_a_cluster_without_any_is_waited_for(
    cluster, folder, workers
):
    nodes = [cluster.add_node(num_cpus=workers)]
    process = folder.start(
        *SWEEP, "select", "fit.resources.workers=1", f"resources.workers={workers}"
    )
    wait_until(lambda: running(folder) == 1, process)
    nodes.append(cluster.add_node(num_cpus=workers))
    wait_until(lambda: running(folder) == 2, process)
    assert f"the cluster has room for 2 trainings of {workers} x 1 CPU" in process.screen()
    for node in nodes:
        cluster.remove_node(node, allow_graceful=False)
    waiting = f"waiting for nodes with room for {workers} x 1 CPU"
    wait_until(lambda: process.screen().count(waiting) > 1, process)
    cluster.add_node(num_cpus=2 * workers)
    _, err = process.communicate(timeout=3 * WAIT_SECONDS)
    assert process.returncode == 0, err
    trials = folder.trials()
    assert [run.data.tags["dca.state"] for run in trials] == ["complete"] * 4
    assert_whole(folder.store(), trials)
