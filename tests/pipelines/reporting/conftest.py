"""A store of one's own, and findings made up in it."""

from collections.abc import Callable, Sequence

import pytest

from pipelines.experiment import Experiment
from pipelines.reporting.findings import Findings, findings
from pipelines.tracking.store import Store
from tests.pipelines.stored import Made, store_sweep

SPACE = {
    "train.learning_rate": {"log_uniform": [1e-4, 1e-1]},
    "model.residual": {"choice": ["standard", "dca"]},
    "model.last_k": {"choice": [1, 2, None], "when": {"model.residual": "dca"}},
}


@pytest.fixture
def store(store, tmp_path, monkeypatch) -> Store:
    """Where it is looked for by default."""
    monkeypatch.chdir(tmp_path)
    return store


@pytest.fixture
def searched(data) -> Experiment:
    """An experiment with a conditional space."""
    return read_experiment(data | {"search": {"space": SPACE, "trials": 8}}, source="test")


@pytest.fixture
def made(store) -> Callable[..., Findings]:
    """What is found of a sweep with these trials."""

    def make(config: Experiment, trials: Sequence[Made], **options) -> Findings:
        store_sweep(store, config, trials, **options)
        return findings(config.experiment)

    return make
