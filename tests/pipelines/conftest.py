"""What the tests of the pipeline share."""

import fcntl
import json
import logging
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import ray
import requests
from moto.server import ThreadedMotoServer
from ray.cluster_utils import Cluster

from pipelines.compat import ray as compat
from pipelines.config import yaml_text
from pipelines.engine import code
from pipelines.experiment import config
from pipelines.storage.location import Storage
from pipelines.storage.remote import RemoteDirectory
from pipelines.tracking.store import Store
from tests.pipelines.commands import (
    EXPERIMENT,
    SECRETS,
    TRIAL,
    Folder,
    below,
    tracking_server,
    wait_until,
)
from tests.pipelines.local_tune import local_tune as local_tune
from tests.pipelines.quick_mlflow import quick
from tests.pipelines.stored import SHARED, put_database

LONGER = EXPERIMENT.replace("tokens: 65536", "tokens: 163840").replace("evals: 8", "evals: 32")
"""Trials that can be killed between a checkpoint and their end."""
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIA0KEYOFTESTS",
    "AWS_SECRET_ACCESS_KEY": "never-to-be-shown",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="session", autouse=True)
def quick_mlflow() -> Iterator[None]:
    with quick():
        yield


@pytest.fixture(scope="session", autouse=True)
def written_experiments() -> Iterator[None]:
    """The same experiments are written as YAML again and again: here each once."""
    written = dict[str, str]()

    def dump(data: Mapping[str, Any]) -> str:
        key = json.dumps(data)
        if key not in written:
            written[key] = yaml_text.dump(data)
        return written[key]

    with mock.patch.object(config, "dump", dump):
        yield


@pytest.fixture(scope="session", autouse=True)
def shared_database(common: Path) -> None:
    SHARED[:] = [common / "empty.db"]


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """A test that opens a folder's store names it in the environment: not for the next module."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if before is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before


@pytest.fixture(scope="session")
def finished(common: Path, text: Path) -> Folder:
    """A sweep on real Ray in which a trial's process and then the driver died, then finished.

    Its environment has secrets; beside it, in `ray`, are the logs of Ray.

    Made once for all processes that run tests, which only read it; `Folder.copy` is for changes.
    """
    path = common / "finished"
    with (common / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            assert (path / "screen.txt").exists(), "the sweep failed in another process"
            return Folder(path)
        folder = Folder(path, text, LONGER, fresh=True)
        (path / "einops.py").write_text("raise SystemExit('planted')")  # no process may import it
        ray = tempfile.mkdtemp(dir="/tmp")  # a socket's path is short
        folder.environment |= SECRETS | {"RAY_TMPDIR": ray}
        (path / "killed.txt").write_text(_killed(folder))
        code, out, err = folder.run_forked("sweep.py", "tiny.yaml")
        assert code == 0, err
        shutil.move(ray, common / "ray")
        (path / "screen.txt").write_text(out)
    return folder


STUDY = """
experiment: tiny
data: {{corpus: files, path: "{text}"}}
model: {{dim: 16, depth: 2, heads: 2}}
train:
  {{tokens: 8192, seq_len: 32, batch_tokens: 256, learning_rate: 1e-2, evals: 4, eval_tokens: 512}}
fit: {{eval_tokens: 512}}
arms: {{standard: {{model.residual: standard}}, dca-2: {{model.residual: dca}}}}
seeds: 2
search:
  space: {{train.learning_rate: {{choice: [5.0e-3, 1.0e-2]}}}}
  sampler: {{name: grid}}
  scheduler: {{name: none}}
generate: {{max_new_tokens: 20}}
"""


@pytest.fixture(scope="session")
def studied(common: Path, text: Path) -> Folder:
    """A finished study on real Ray.

    Made once for all processes that run tests, which only read it; `Folder.copy` is for changes.
    """
    path = common / "studied"
    with (common / "studied.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            assert (path / "screen.txt").exists(), "the study failed in another process"
            return Folder(path)
        folder = Folder(path, text, STUDY)
        code, out, err = folder.run_forked("sweep.py", "tiny.yaml")
        assert code == 0, err
        (path / "screen.txt").write_text(out)
    return folder


def _killed(folder: Folder) -> str:
    """The screen of a sweep whose first trial was killed, as it was itself after two had ended.

    Another sweep of the experiment was refused meanwhile.
    """
    process = folder.start("sweep.py", "tiny.yaml")
    wait_until(lambda: len({path.parent for path in folder.checkpoints()}) == 2, process)
    commands = [" ".join(child.cmdline()) for child in below(process, "")]
    (folder.path / "commands.txt").write_text("\n".join(commands))  # which all users can see
    below(process, *TRIAL)[0].kill()
    code, _, err = folder.run("sweep.py", "tiny.yaml", "seed=1")
    assert code == 1
    assert re.fullmatch(
        rf"experiment tiny: already running \(process {process.pid}: .+\); .+\n", err
    )
    ended = lambda: sum("dca.state" in run.data.tags for run in folder.trials())  # noqa: E731
    wait_until(lambda: "resumes from step" in process.screen() and ended() >= 2, process)
    process.kill()
    out, _ = process.communicate(timeout=60)
    return out


@pytest.fixture(scope="session")
def two_nodes() -> Iterator[str]:
    """The address of a cluster of Ray, for tests of Ray itself.

    One node pretends to have two GPUs, the other has nothing. Its workers do not load what trials
    need.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**compat.ENVIRONMENT, **compat.LOCAL_ENVIRONMENT}.items():
            if name != compat.PRELOADED:
                patch.setenv(name, value)
        head = {"num_cpus": 6, "num_gpus": 2, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            cluster.add_node(num_cpus=0)
            yield cluster.address
        finally:
            cluster.shutdown()


@pytest.fixture(scope="module")
def connected(two_nodes: str) -> Iterator[None]:
    """This process is a driver of that cluster."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in compat.ENVIRONMENT.items():
            patch.setenv(name, value)
        ray.init(two_nodes, log_to_driver=False)
        try:
            yield
        finally:
            ray.shutdown()


@pytest.fixture
def tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty tracking store, for this process too."""
    uri = put_database(tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture
def store(tracking: str, tmp_path: Path) -> Store:
    """The same, opened for an experiment called tiny."""
    found = Store.open("tiny", tmp_path / "runs")
    assert found is not None
    return found


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources, to be edited."""
    for name in code.PROJECT:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(code.ROOT / name, tmp_path / "project" / name, ignore=ignored)
    monkeypatch.setattr(code, "ROOT", tmp_path / "project")
    return tmp_path / "project"


class Log(logging.Handler):
    """The requests that a server was asked, as `GET /bucket/key`."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        request = re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage()).split('"')[1]
        self.lines.append(request.rpartition(" ")[0])


class ObjectStore:
    """An S3 server with one bucket, `bucket`."""

    def __init__(self) -> None:
        self.log = Log()
        logger = logging.getLogger("werkzeug")
        logger.propagate, logger.handlers = False, [self.log]
        self.server = ThreadedMotoServer("127.0.0.1", 0)
        self.server.start()
        self.host = "{}:{}".format(*self.server.get_host_and_port())
        requests.put(f"http://{self.host}/bucket").raise_for_status()

    def uri(self, place: str) -> str:
        return f"s3://{place}?endpoint_override={self.host}&scheme=http&region=us-east-1"

    def stop(self) -> None:
        self.server.stop()

    def start(self) -> None:
        """Again, at the same address and with what it had."""
        host, _, port = self.host.partition(":")
        self.server = ThreadedMotoServer(host, int(port))
        self.server.start()


@pytest.fixture(scope="session")
def tracking_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server of `tracking_address` has stored."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="session")
def tracking_address(tracking_folder: Path) -> Iterator[str]:
    """Address of an MLflow server, in which tests use experiments and models of their own."""
    with tracking_server(tracking_folder) as address:
        yield address


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    store = ObjectStore()
    yield store
    store.stop()


@pytest.fixture
def s3(object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URI in it where nothing is yet, on a node that has no copies of anything."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    node = tmp_path / "node"
    node.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(node))
    monkeypatch.setenv("TMPDIR", str(node))
    return object_store.uri(f"bucket/{uuid.uuid4().hex}")


@pytest.fixture(params=["s3", "file"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> RemoteDirectory:
    """An empty folder in each kind of shared storage."""
    kind = request.getfixturevalue("s3") if request.param == "s3" else f"file://{tmp_path}/shared"
    folder = Storage.of(kind).folder
    assert isinstance(folder, RemoteDirectory)
    return folder
