"""A cluster of several machines: trials and workers on all of them, one of which is killed."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.registry.versions import Registry
from pipelines.tracking.store import Store
from tests.pipelines.commands import ROOT, Folder, assert_whole, below, wait_until
from tests.pipelines.hosts import BIN, KEYS, Cluster, Host, cluster, missing

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
    return folder.start("sweep.py", "tiny.yaml", f"storage={made.storage}", *arguments)


def assert_ended_well(folder: Folder, experiment: str, model: str) -> None:
    """Three trials with a run and a whole history each, a fit, a champion."""
    store = folder.store(experiment)
    trials, fits = store.find("trial"), store.find("fit")
    assert sorted(int(run.data.tags["dca.trial"]) for run in trials) == [0, 1, 2]
    assert {run.data.tags["dca.state"] for run in trials} == {"complete"}
    assert len(fits) == 1
    assert_whole(store, [*trials, *fits])
    assert Registry(store.client, model).aliases()["champion"] == 1


def test_a_node_killed_in_the_middle_costs_what_its_trial_did_since_its_checkpoint(there, folder):
    made, _ = there
    process = sweep(folder, made)
    wait_until(lambda: any("tokens" in run.data.metrics for run in folder.trials()), process)
    wait_until(lambda: any(trains(host) for host in made.hosts), process)
    next(host for host in made.hosts if trains(host)).kill()
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert re.search(r"trial \d crashed: .*; resumes from its last checkpoint", out)
    assert re.search(r"trial \d: resumes from step \d+/512", out)
    assert_ended_well(folder, "tiny", "dca-gpt")


def trains(host: Host) -> bool:
    return bool(host.process and below(host.process, "ray::RayTrainWorker"))


def test_the_same_sweep_as_a_job_ends_the_same_way(there, folder):
    made, work = there
    commit = "0123456789abcdef0123456789abcdef01234567"
    given = {"MLFLOW_TRACKING_URI": folder.environment["MLFLOW_TRACKING_URI"]}
    submit = [
        *(str(BIN / "ray"), "job", "submit", "--address", made.dashboard, "--working-dir", "."),
        *("--runtime-env-json", json.dumps({"env_vars": {**given, "DCA_GPT_COMMIT": commit}})),
        *("--", "python", "pipelines/sweep.py", str(work / "tiny.yaml")),
        *("experiment=tiny-job", "promote.model=dca-gpt-job", f"storage='{made.storage}'"),
    ]
    done = subprocess.run(
        submit, cwd=ROOT, env=folder.environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_ended_well(folder, "tiny-job", "dca-gpt-job")
    (search,) = folder.store("tiny-job").find("search")
    assert search.data.tags["mlflow.source.git.commit"] == commit


def test_a_job_that_does_not_say_where_results_go_is_refused(there, folder):
    made, _ = there
    submit = [
        *(str(BIN / "ray"), "job", "submit", "--address", made.dashboard, "--working-dir", "."),
        *("--", "env", "-u", "MLFLOW_TRACKING_URI", "python", "pipelines/sweep.py"),
    ]
    done = subprocess.run(
        submit, cwd=ROOT, env=folder.environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0
    for name in ("MLFLOW_TRACKING_URI: expected", "storage: expected", "DCA_GPT_COMMIT: expected"):
        assert name in done.stdout + done.stderr


def test_a_fit_shrinks_and_grows_with_the_cluster(there, folder):
    """Two workers, of which one's node is killed; one goes on, until there is another node."""
    made, _ = there
    for host in made.alive[2:]:
        host.kill()
    first, second = made.alive
    process = folder.start(
        *("train.py", "tiny.yaml", f"storage={made.storage}", "experiment=elastic"),
        *("resources.workers=[1,2]", "train.tokens=51200000", "train.batch_tokens=1024"),
        *("train.evals=1000",),
    )
    store = folder.store("elastic")

    def goes_on(*hosts: Host) -> None:
        before = trained(store)
        wait_until(lambda: trained(store) > before and all(map(trains, hosts)), process)

    goes_on(first, second)
    second.kill()
    goes_on(first)
    third = made.add()
    goes_on(first, third)
    goes_on(first, third)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert len(re.findall(r"resumes from step \d+/50000", out)) >= 2
    assert_whole(store, store.find("train"))


def trained(store: Store) -> float:
    return max((run.data.metrics.get("tokens", 0.0) for run in store.find("train")), default=0.0)


def test_no_secret_is_in_a_log_or_in_the_tracking_store(there, folder):
    made, _ = there
    secret = KEYS["AWS_SECRET_ACCESS_KEY"]
    logs = [*made.logs.glob("*.log"), *made.session.rglob("*.log"), *made.session.rglob("*.out")]
    logs += [path for host in made.hosts for path in host.disk.rglob("*.log")]
    assert len(logs) > 20
    assert [path for path in logs if secret in path.read_text(errors="ignore")] == []
    for experiment in ("tiny", "tiny-job"):
        store = folder.store(experiment)
        kinds = ("pipeline", "search", "trial", "fit", "evaluate")
        for run in [run for kind in kinds for run in store.find(kind)]:
            assert secret not in str(run.to_dictionary())
