"""Fixtures for all tests: a small generated corpus, and an experiment that trains on it quickly."""

import gc
import multiprocessing.util
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

from pipelines.experiment import Experiment, read_experiment
from pipelines.training.config import TrainingRun

TALLY = pytest.StashKey[Counter]()
"""Counts from the tests that kill processes at random moments."""
RAY = (
    "test_sweep.py",
    "test_whole_study.py",
    "test_faults.py",
    "test_ray.py",
    "test_tune.py",
    "test_inspection.py",
    "test_gpus.py",
    "test_task.py",
)
FORKS = (
    *("test_promotion.py", "test_champions.py", "test_score.py", "test_packaged_model.py"),
    *("test_old_stores.py", "test_registration.py", "test_data_parallel.py", "test_storage.py"),
    *("test_commands.py", "test_secrets.py", "test_report.py", "test_docs.py"),
    *("test_sharded.py", "test_code.py", "test_library.py", "test_mutants.py"),
)
GROUPS = dict.fromkeys(RAY, "Ray") | dict.fromkeys(FORKS, "forks")
"""Files that one process runs one after the other: there is one Ray, and beside it one process with
all libraries, from which others are forked, and one tracking server."""
RUNNING: list[str] = []
"""The unit test that is running."""
TIERS = ("slow", "process", "ray", "server", "browser", "docs", "faults", "cluster")
"""Markers; a test without one of them is a unit test."""
SAME = {"derandomize": True, "deadline": None, "database": None}
hypothesis.settings.register_profile("quick", max_examples=200, **SAME)
hypothesis.settings.register_profile("full", max_examples=2000, **SAME)
hypothesis.settings.load_profile("quick")  # --hypothesis-profile full: make test-faults
os.environ["RAY_AUTH_MODE"] = "disabled"  # or Ray writes a token into the home folder
os.environ["OMP_WAIT_POLICY"] = "passive"  # or two threads wait long for each other beside others
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # or each process that compiles starts others
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  or its workers starve beside other tests
multiprocessing.util.get_temp_dir()  # once: in a test's folder a socket's path is too long
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of what a script runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
gc.disable()  # until all is imported
if "PYTEST_XDIST_WORKER" in os.environ:  # what one process has compiled is there for its children
    sys.dont_write_bytecode = False  # a container may forbid it; not for mutants, which have none
NEEDS = {
    "tracking": "slow",
    "local_tune": "slow",
    "finished": "ray",
    "studied": "ray",
    "two_nodes": "ray",
    "object_store": "server",
    "shared": "server",
    "tracking_address": "server",
    "browser": "browser",
}
"""Fixtures whose tests are of a tier, whatever marks they have."""


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Each test draws the same random numbers, whichever ran before it: a sum of roundings that is
    seldom above its bound would fail one run in twenty."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder for all processes that run tests."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


@pytest.fixture(scope="session")
def text(common: Path) -> Path:
    """60 kB of sentences from a small grammar."""
    rng = random.Random(0)
    words = [["the", "a"], ["old", "red", "small"], ["cat", "sun", "sea"], ["saw", "was", "ate"]]
    lines = [" ".join(rng.choice(w) for w in words) for _ in range(4000)]
    path = common / "corpus" / "text.txt"
    path.parent.mkdir(exist_ok=True)
    own = path.with_name(f"{os.getpid()}")
    own.write_text("\n".join(lines))
    return own.replace(path)


@pytest.fixture
def data(text: Path, tmp_path: Path) -> dict:
    """The small experiment as plain data, as read from YAML."""
    return {
        "experiment": "tiny",
        "storage": str(tmp_path / "runs"),
        "data": {"corpus": "files", "path": str(text)},
        "model": {"dim": 16, "depth": 2, "heads": 2},
        "train": {
            "tokens": 4096,
            "seq_len": 32,
            "batch_tokens": 256,
            "learning_rate": 1e-2,
            "evals": 4,
            "eval_tokens": 512,
            "log_every_steps": 2,
        },
    }


@pytest.fixture
def experiment(data: dict) -> Experiment:
    """The small experiment, validated."""
    return read_experiment(data, source="test")


@pytest.fixture
def run(experiment: Experiment) -> TrainingRun:
    """The small experiment's base configuration of one training."""
    return experiment.training_run()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark unit tests, and put first what takes longest."""
    for item in items:
        for needed in NEEDS.keys() & set(getattr(item, "fixturenames", [])):
            item.add_marker(NEEDS[needed])
        tiers = [tier for tier in TIERS if item.get_closest_marker(tier)]
        if not tiers:
            item.add_marker("unit")
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    """The order of files: the groups, what takes longest, units; pages show what Ray has made."""
    order = ("server", "docs", "process", "ray", "browser", "slow", "unit")
    if group := GROUPS.get(item.path.name):
        return ("Ray", "forks").index(group) - 2
    return next(i for i, tier in enumerate([*order, *TIERS]) if item.get_closest_marker(tier))


class Scheduler(LoadFileScheduling):
    """Gives a process the tests of one file at a time, or those of a group of files."""

    def _split_scope(self, nodeid: str) -> str:
        path = super()._split_scope(nodeid)
        return GROUPS.get(Path(path).name, path)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduler:
    """Instead of marks: xdist 3.8 does not find its groups with pytest 9.2."""
    return Scheduler(config, log)


def pytest_collection_finish() -> None:
    """What is imported stays: do not search it for garbage, not once, and the rest seldom."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note whether what follows is a unit test, slow or not, for `refuse_processes`."""
    RUNNING.clear()
    if not any(map(item.get_closest_marker, TIERS[1:])):
        RUNNING.append(item.nodeid)


def refuse_processes(event: str, arguments: tuple[Any, ...]) -> None:
    """Fail a unit test that starts a process of Python, or a server.

    Python has no audit event for the processes of `multiprocessing` that are not forked.
    """
    started = event in ("os.fork", "os.posix_spawn", "socket.bind")
    started |= event == "subprocess.Popen" and str(arguments[0]) == sys.executable
    if started and RUNNING:
        raise RuntimeError(f"{event} in {RUNNING[0]}: mark it, see TIERS in tests/conftest.py")


sys.addaudithook(refuse_processes)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The closing lines of `make test-faults`."""
    for what, count in config.stash.get(TALLY, Counter()).items():
        terminalreporter.write_line(f"{what}: {count}")
