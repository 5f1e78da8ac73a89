"""Fixtures of the report's tests: an experiment with a search, and the results of stored sweeps."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipelines.experiment import Experiment, read_experiment
from pipelines.reporting.loading import load_results
from pipelines.reporting.results import Results
from pipelines.tracking.store import Store
from tests.pipelines.stored import PROVENANCE, Made, same_provenance, store_sweep

SPACE = {
    "train.learning_rate": {"log_uniform": [1e-4, 1e-1]},
    "model.residual": {"choice": ["standard", "dca"]},
    "model.dca.last_k": {"choice": [1, 2, None], "when": {"model.residual": "dca"}},
}


@pytest.fixture
def store(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The empty store, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PROVENANCE, same_provenance)
    return store


@pytest.fixture
def searched(data: dict) -> Experiment:
    """The small experiment with a conditional search space."""
    return read_experiment(data | {"search": {"space": SPACE, "trials": 8}}, source="test")


@pytest.fixture
def made(store: Store) -> Callable[..., Results]:
    """Stores a sweep with these trials and returns its results."""

    def make(config: Experiment, trials: Sequence[Made], **options) -> Results:
        store_sweep(store, config, trials, **options)
        return load_results(config.experiment)

    return make
