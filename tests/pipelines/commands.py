"""Commands as people run them, in a folder of their own: real processes, Ray, MLflow and kills."""

import importlib
import io
import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import psutil
import requests

from pipelines.console.command import run_command
from pipelines.console.progress import Progress
from pipelines.engine.stage import Invocation
from pipelines.storage.remote import RemoteDirectory
from pipelines.tracking.store import Store
from pipelines.training import checkpoint
from tests.pipelines.forked import Command
from tests.pipelines.stored import move_database, put_database

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 2400
TRIAL = ("ray::Trial", "ray::ResourceTrainable")
"""How Ray calls a trial's process between its steps, and in one."""
CANARY = "c4nary-of-the-tests"
"""Part of every secret in the environment of commands whose output is searched for it."""
SECRETS = dict.fromkeys(
    ("MLFLOW_TRACKING_PASSWORD", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    f"{CANARY}-alone",
)
EXPERIMENT = """
experiment: tiny
data: {{corpus: files, path: "{text}"}}
model: {{dim: 16, depth: 2, heads: 2}}
train:
  {{tokens: 65536, seq_len: 32, batch_tokens: 256, learning_rate: 1e-2, evals: 8, eval_tokens: 512}}
search:
  space:
    train.learning_rate: {{log_uniform: [1e-4, 1e-2]}}
    model.residual: {{choice: [dca, grn_v2]}}
    model.dca.last_k: {{choice: [1, 2], when: {{model.residual: dca}}}}
  trials: 4
fit: {{tokens: 131072, resources: {{workers: 2}}}}
generate: {{max_new_tokens: 20}}
"""

STUDY = """
experiment: tiny
data: {{corpus: files, path: "{text}"}}
model: {{dim: 16, depth: 2, heads: 2}}
train:
  {{tokens: 8192, seq_len: 32, batch_tokens: 256, learning_rate: 1e-2, evals: 4, eval_tokens: 512}}
arms: {{plain: {{model.residual: standard}}, grn: {{model.residual: grn_v2}}}}
search:
  space: {{train.learning_rate: {{log_uniform: [1e-3, 1e-2]}}}}
  trials: 2
  scheduler: {{name: none}}
failures: {{retries: 1}}
"""


class Folder:
    """A working folder with an experiment in it."""

    def __init__(
        self,
        path: Path,
        text: Path | None = None,
        experiment: str = EXPERIMENT,
        *,
        fresh: bool = False,
    ) -> None:
        """With no `text` the folder as it is; `fresh`: without a database, which takes seconds."""
        self.path = path
        path.mkdir(exist_ok=True)
        if text and not fresh:
            put_database(path / "mlflow.db")
        if text:
            (path / "tiny.yaml").write_text(experiment.format(text=text))
        self.environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}

    def start(self, command: str, *arguments: str, given: str = "") -> Command:
        """A command in a process of its own, which finds a text in a pipe."""
        script = ROOT / "pipelines" / command
        return Command(script, arguments, self.path, self.environment, given=given)

    def run_forked(self, command: str, *arguments: str, given: str = "") -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a command in a process of its own."""
        process = self.start(command, *arguments, given=given)
        out, err = process.communicate(timeout=WAIT_SECONDS)
        assert process.returncode is not None
        return process.returncode, out, err

    def run(self, command: str, *arguments: str) -> tuple[int, str, str]:
        """The same of a command that runs in this process."""
        main = importlib.import_module(f"pipelines.{Path(command).stem}").main
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        with (
            chdir(self.path),
            mock.patch.dict(os.environ, self.environment, clear=True),
            redirect_stdout(out),
            redirect_stderr(err),
            mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO())),
        ):
            argv = [str(ROOT / "pipelines" / command), *arguments]
            code = run_command(main, argv, resumes=command in ("sweep.py", "train.py"))
        return code, *(stream.buffer.getvalue().decode() for stream in (out, err))

    def python(self, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a line of Python instead of a command."""
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=self.path,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
        )

    def copy(self, to: Path) -> "Folder":
        """Another folder with the same runs, models and files."""
        locks = shutil.ignore_patterns(".dca-gpt-*.lock")  # of commands that read it meanwhile
        shutil.copytree(self.path, to, ignore=locks)
        move_database(to / "mlflow.db", self.path, to)
        return Folder(to)

    def checkpoints(self) -> list[Path]:
        """Of trials."""
        return list(self.path.glob("runs/trials/*/trial-*/0*"))

    def store(self, experiment: str = "tiny") -> Store:
        os.environ["MLFLOW_TRACKING_URI"] = self.environment.get(
            "MLFLOW_TRACKING_URI", f"sqlite:///{self.path}/mlflow.db"
        )
        store = Store.open(experiment, self.path / "runs")
        assert store is not None
        return store

    def trials(self) -> list:
        return self.store().find("trial")


def invocation() -> Invocation:
    """Of a sweep, for what runs stages without a command."""
    return Invocation(("pipelines/sweep.py",), Progress())


def wait_until(condition: Callable[[], object], process: Command | subprocess.Popen[bytes]) -> None:
    """Wait for a condition while a command runs."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.1)


def below(process: Command | subprocess.Popen[bytes], *names: str) -> list[psutil.Process]:
    """The living descendants of a command that are called like one of that."""
    found = []
    try:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if any(name in " ".join(child.cmdline()) for name in names):
                    found.append(child)
            except psutil.Error:
                continue  # it ended meanwhile
    except psutil.NoSuchProcess:
        return []
    return found


def assert_whole(store: Store, runs: list, log_every: int = 10) -> None:
    """No history has a gap or a duplicate, and the last row is an evaluated one."""
    for run in runs:
        points = store.client.get_metric_history(run.info.run_id, "train_bits_per_byte")
        steps = sorted(point.step for point in points)
        evaluated = store.client.get_metric_history(run.info.run_id, "val_bits_per_byte")
        evaluations = [point.step for point in evaluated]
        assert len(steps) == len(set(steps))
        assert len(evaluations) == len(set(evaluations))
        assert max(b - a for a, b in itertools.pairwise([0, *steps])) <= log_every
        assert set(evaluations) <= set(steps)
        assert max(evaluations) == max(steps)


def files_with_canary(folders: Iterable[Path]) -> list[str]:
    """The files below the folders, databases included, with the canary in content or name."""
    files = (path for folder in folders for path in folder.rglob("*"))
    return [
        str(path)
        for path in files
        if CANARY in path.name or (path.is_file() and CANARY.encode() in path.read_bytes())
    ]


def training(folder: Folder) -> tuple[dict[str, bytes], list[dict[str, float]]]:
    """The bits of each tensor, and the history without times, of train.py's last checkpoint."""
    return saved(max(folder.path.glob("runs/fits/*/0*")))


def saved(path: Path | RemoteDirectory) -> tuple[dict[str, bytes], list[dict[str, float]]]:
    """The same of a checkpoint."""
    snapshot, tensors = checkpoint.read(path)
    clocks = ("time", "seconds", "tokens_per_second", "peak_memory_bytes")
    rows = [{k: v for k, v in row.items() if k not in clocks} for row in snapshot.history]
    return {name: value.numpy().tobytes() for name, value in tensors.items()}, rows


def start_server(path: Path, port: int) -> subprocess.Popen[bytes]:
    """An MLflow server that keeps everything in a folder and hands artifacts through."""
    database = path / "server.db"
    if not database.exists():
        put_database(database)
    return start_and_wait(
        [
            *("server", "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{database}"),
            *("--artifacts-destination", f"{path}/server"),
        ],
        f"http://127.0.0.1:{port}/health",
        path,
    )


def start_and_wait(
    arguments: list[str], health: str, path: Path, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """An `mlflow` command that serves, once it answers. It finds what else it runs beside it."""
    own = Path(sys.executable).parent
    environment = environment or dict(os.environ)
    jobs = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # a dozen processes that have no work
    with (path / f"{arguments[0]}.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *arguments],
            cwd=path,
            env={**environment, **jobs, "PATH": f"{own}:{environment['PATH']}"},
            stdout=log,
            stderr=log,
        )
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            requests.get(health, timeout=1).raise_for_status()
            return server
        except requests.RequestException:
            time.sleep(0.5)
    stop(server)
    raise AssertionError(f"{health} never answered: {(path / f'{arguments[0]}.log').read_text()}")


def stop(server: subprocess.Popen[bytes]) -> None:
    """End a server and what it has started."""
    processes = below(server, "")
    for process in [*processes, server]:
        process.kill()
    server.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def tracking_server(path: Path) -> Iterator[str]:
    """The address of a server for the time of a block."""
    port = free_port()
    server = start_server(path, port)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(server)
