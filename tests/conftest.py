"""Fixtures for all tests: a small generated corpus, and an experiment that trains on it quickly."""

import os
import random
from collections import Counter
from pathlib import Path

import hypothesis
import pytest

from pipelines.experiment import Experiment, read_experiment
from pipelines.training.config import TrainingRun

TALLY = pytest.StashKey[Counter]()
"""Counts from the tests that kill processes at random moments."""
LONGEST = (
    "test_promotion.py",
    "test_report.py",
    "test_sweep.py",
    "test_faults.py",
    "test_registry.py",
    "test_docs.py",
)
SAME = {"derandomize": True, "deadline": None, "database": None}
hypothesis.settings.register_profile("quick", max_examples=200, **SAME)
hypothesis.settings.register_profile("full", max_examples=2000, **SAME)
hypothesis.settings.load_profile("quick")  # --hypothesis-profile full: make test-faults
os.environ["RAY_AUTH_MODE"] = "disabled"  # or Ray writes a token into the home folder
os.environ["OMP_WAIT_POLICY"] = "passive"  # or two threads wait long for each other beside others
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  or its workers starve beside other tests


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 kB of sentences from a small grammar."""
    rng = random.Random(0)
    words = [["the", "a"], ["old", "red", "small"], ["cat", "sun", "sea"], ["saw", "was", "ate"]]
    lines = [" ".join(rng.choice(w) for w in words) for _ in range(4000)]
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n".join(lines))
    return path


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
    """Start the longest test files first: `make test` runs three files at a time."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The closing lines of `make test-faults`."""
    for what, count in config.stash.get(TALLY, Counter()).items():
        terminalreporter.write_line(f"{what}: {count}")
