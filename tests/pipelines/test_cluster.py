"""A cluster of several machines: trials and workers on all of them, one of which is killed."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.runtime.registry import Registry
from tests.pipelines.commands import Folder, assert_whole, wait_until
from tests.pipelines.hosts import Cluster, cluster, missing

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
EXPERIMENT = """
experiment: tiny
data: {{corpus: files, path: "{text}"}}
model: {{dim: 16, depth: 2, heads: 2}}
resources: {{workers: 2}}
train:
  tokens: 131072
  seq_len: 32
  batch_tokens: 256
  learning_rate: 1e-2
  evals: 8
  eval_tokens: 512
search:
  space: {{train.learning_rate: {{log_uniform: [1e-3, 1e-2]}}}}
  scheduler: {{name: none}}
  trials: 3
fit: {{tokens: 65536, resources: {{workers: [1, 2]}}}}
generate: {{max_new_tokens: 20}}
"""


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> Iterator[tuple[Cluster, Path]]:
    path = tmp_path_factory.mktemp("cluster")
    work = path / "work"
    work.mkdir()
    with cluster(path, hosts=3, hidden=work) as made:
        yield made, work


@pytest.fixture
def folder(there, text) -> Folder:
    made, work = there
    folder = Folder(work, text, EXPERIMENT)
    folder.environment = made.environment
    return folder


def sweep(folder: Folder, made: Cluster, *arguments: str) -> subprocess.Popen[str]:
    storage = f"storage={made.storage}"
    return folder.start("sweep.py", "tiny.yaml", storage, *arguments)


def nodes_alive(folder: Folder) -> int:
    state = folder.python(
        "import ray; ray.init(log_to_driver=False, logging_level='ERROR')\n"
        "print(sum(node['Alive'] for node in ray.nodes()))"
    )
    return int(state.stdout)


def test_a_node_killed_in_the_middle_costs_what_its_trials_did_since_their_checkpoints(
    there, folder
):
    made, _ = there
    wait_until(lambda: nodes_alive(folder) == 4, made.hosts[0].process)
    process = sweep(folder, made)
    store = folder.store
    wait_until(lambda: any_progress(folder), process)
    made.hosts[0].kill()
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    trials = store().find("trial")
    assert sorted(int(run.data.tags["dca.trial"]) for run in trials) == [0, 1, 2]
    assert {run.data.tags["dca.state"] for run in trials} == {"complete"}
    assert_whole(store(), [*trials, *store().find("fit")])
    assert re.search(r"its? .*(died|crashed)|crashed: ", out), out
    registry = Registry(store().client, "dca-gpt")
    assert registry.aliases()["champion"] == 1


def any_progress(folder: Folder) -> bool:
    return any("tokens" in run.data.metrics for run in folder.store().find("trial"))
