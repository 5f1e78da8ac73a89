"""Several machines on one: raylets with network, disk and identity of their own, and the servers
they share, PostgreSQL, MLflow's and S3's, as a cluster would have them."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import requests

from tests.pipelines.commands import ROOT, free_port, start_and_wait, stop, wait_until

BIN = Path(sys.executable).parent
NETWORK = "10.214.73"
"""Of bridge and hosts: the head is number 1."""
BRIDGE = "dcagpt0"
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
KEYS = {"AWS_ACCESS_KEY_ID": "only-in-the-environment", "AWS_SECRET_ACCESS_KEY": "sesame-4711"}
"""What must never be seen in configurations, logs and the tracking store."""


def missing() -> str | None:
    """Why this machine cannot play several; None if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "network namespaces need iproute2"
    if not POSTGRES:
        return "there is no PostgreSQL server"
    return None


@dataclass
class Host:
    """A machine that can be killed: a network namespace with a raylet, and a folder as its disk."""

    number: int
    disk: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return f"dcagpt-{self.number}"

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.number}"

    def kill(self) -> None:
        """As if its plug had been pulled: all its processes at once, its disk and its network."""
        assert self.process is not None
        for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
            os.kill(process.pid, signal.SIGKILL)
        self.process.wait()
        self.end()

    def end(self) -> None:
        """Leave nothing behind."""
        if self.process is not None and self.process.poll() is None:
            stop(self.process)
        subprocess.run(["ip", "netns", "delete", self.name], capture_output=True)
        shutil.rmtree(self.disk, ignore_errors=True)


@dataclass
class Cluster:
    """A head with no CPU to train on, hosts, and what they share."""

    environment: dict[str, str]
    """Of the processes that use it."""
    storage: str
    dashboard: str
    """Address that takes jobs."""
    logs: Path
    """A folder."""
    session: Path
    """Of the head's Ray."""
    hidden: list[Path]
    """Folders that the hosts do not see."""
    hosts: list[Host] = field(default_factory=list)
    """All that ever were."""

    @property
    def alive(self) -> list[Host]:
        """Those that were not killed."""
        return [host for host in self.hosts if host.process and host.process.poll() is None]

    def nodes(self) -> int:
        """How many machines Ray counts as alive, the head being one."""
        try:
            return requests.get(f"{self.dashboard}/api/v0/nodes", timeout=5).text.count('"ALIVE"')
        except requests.RequestException:
            return 0

    def add(self) -> Host:
        """One more machine, of one CPU."""
        host = Host(2 + len(self.hosts), Path(tempfile.mkdtemp(prefix="dcagpt-", dir="/tmp")))
        self.hosts.append(host)
        _connect(host)
        _start(host, self.environment, self.hidden, self.logs)
        return host


@contextmanager
def cluster(path: Path, *, hosts: int, hidden: Path) -> Iterator[Cluster]:
    """`hosts` machines of one CPU each, which see neither the folder `hidden` nor this project."""
    with ExitStack() as stack:
        stack.enter_context(_network())
        own = f"{NETWORK}.1"
        s3 = stack.enter_context(_s3(path, own))
        storage = f"s3://shared/{path.name}?endpoint_override={own}:{s3}&scheme=http&region=here"
        tracking = stack.enter_context(_tracking(path, own))
        port, dashboard = free_port(), free_port()
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RAY_ADDRESS")},
            **KEYS,
            "MLFLOW_TRACKING_URI": tracking,
            "RAY_AUTH_MODE": "disabled",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        disk = Path(tempfile.mkdtemp(prefix="dcagpt-", dir="/tmp"))
        stack.callback(shutil.rmtree, disk, ignore_errors=True)
        stack.enter_context(_head(disk, own, port, dashboard, environment, path))
        made = Cluster(
            {**environment, "RAY_ADDRESS": f"{own}:{port}"},
            storage,
            f"http://{own}:{dashboard}",
            path,
            disk,
            [hidden, ROOT / "dca", ROOT / "pipelines"],
        )
        stack.callback(lambda: [host.end() for host in made.hosts])
        for _ in range(hosts):
            last = made.add()
            assert last.process
        wait_until(lambda: made.nodes() == hosts + 1, last.process)
        yield made


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def _network() -> Iterator[None]:
    """A bridge with the head's address."""
    subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True)
    _ip("link", "add", BRIDGE, "type", "bridge")
    try:
        _ip("address", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        yield
    finally:
        _ip("link", "delete", BRIDGE)


def _connect(host: Host) -> None:
    """A namespace, and a cable from it to the bridge."""
    subprocess.run(["ip", "netns", "delete", host.name], capture_output=True)  # of a killed test
    _ip("netns", "add", host.name)
    cable = ("link", "add", host.name, "type", "veth", "peer", "name", "eth0", "netns", host.name)
    _ip(*cable)
    _ip("link", "set", host.name, "master", BRIDGE, "up")
    _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
    _ip("-n", host.name, "link", "set", "eth0", "up")
    _ip("-n", host.name, "link", "set", "lo", "up")


@contextmanager
def _s3(path: Path, own: str) -> Iterator[int]:
    """An object store with an empty bucket."""
    port = free_port()
    with (path / "s3.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", own, "-p", str(port)],
            stdout=log,
            stderr=log,
        )
    try:
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=f"http://{own}:{port}",
            region_name="us-east-1",
            aws_access_key_id="any",
            aws_secret_access_key="any",
        )
        wait_until(lambda: _answers(client), server)
        client.create_bucket(Bucket="shared")
        yield port
    finally:
        stop(server)


def _answers(client) -> bool:
    from botocore.exceptions import BotoCoreError

    try:
        client.list_buckets()
    except BotoCoreError:
        return False
    return True


@contextmanager
def _tracking(path: Path, own: str) -> Iterator[str]:
    """An MLflow server on a PostgreSQL of its own, which hands artifacts through."""
    folder = Path(tempfile.mkdtemp(prefix="dcagpt-pg-", dir="/tmp"))  # a socket's path is short
    shutil.chown(folder, "postgres")
    data, database = folder / "data", free_port()

    def postgres(command: str, *arguments: str) -> None:
        subprocess.run(
            ["runuser", "-u", "postgres", "--", str(POSTGRES[-1] / command), *arguments],
            check=True,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    postgres("initdb", "--pgdata", str(data), "--auth", "trust", "--no-sync")
    options = f"-p {database} -k {folder} -c listen_addresses=127.0.0.1"
    postgres("pg_ctl", "--pgdata", str(data), "-o", options, "--wait", "start")
    try:
        postgres("createdb", "-h", str(folder), "-p", str(database), "mlflow")
        port = free_port()
        server = start_and_wait(
            [
                *("server", "--host", own, "--port", str(port), "--workers", "1"),
                *("--allowed-hosts", f"{own}:{port}"),
                "--backend-store-uri",
                f"postgresql://postgres@127.0.0.1:{database}/mlflow",
                *("--artifacts-destination", f"{path}/artifacts"),
            ],
            f"http://{own}:{port}/health",
            path,
        )
        try:
            yield f"http://{own}:{port}"
        finally:
            stop(server)
    finally:
        postgres("pg_ctl", "--pgdata", str(data), "--mode", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _head(
    disk: Path, own: str, port: int, dashboard: int, environment: dict[str, str], logs: Path
) -> Iterator[None]:
    """The head of the cluster, with a dashboard: it takes jobs, and frees what trials leave."""
    with (logs / "head.log").open("wb") as log:
        head = subprocess.Popen(
            [
                *(str(BIN / "ray"), "start", "--block", "--head", "--num-cpus=0"),
                *("--node-ip-address", own, "--port", str(port), "--temp-dir", str(disk / "ray")),
                *("--dashboard-host", own, "--dashboard-port", str(dashboard)),
                *("--dashboard-agent-listen-port", str(free_port())),
                *("--include-dashboard", "true", "--disable-usage-stats"),
                *("--object-store-memory", str(200 << 20)),
            ],
            env={**environment, "PATH": f"{BIN}:{environment['PATH']}"},
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        stop(head)


def _start(host: Host, environment: dict[str, str], hidden: list[Path], logs: Path) -> None:
    """A raylet in the host's namespace, that has its own temporary folder and not `hidden`."""
    covers = " && ".join(f"mount -t tmpfs none {folder}" for folder in hidden)
    raylet = (
        f"{covers} && cd {host.disk} && exec {BIN / 'ray'} start --block "
        f"--address {environment['RAY_ADDRESS']} --node-ip-address {host.address} --num-cpus 1 "
        f"--temp-dir {host.disk}/ray --object-store-memory {100 << 20} --disable-usage-stats"
    )
    with (logs / f"{host.name}.log").open("wb") as log:
        host.process = subprocess.Popen(
            ["ip", "netns", "exec", host.name, "sh", "-c", raylet],
            env={**environment, "TMPDIR": str(host.disk)},
            stdout=log,
            stderr=log,
        )
