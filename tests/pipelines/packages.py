"""Packaged models made in a moment, without training."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from dca import build_model
from pipelines.console import isolated
from pipelines.cost import timing
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.engine.code import read_sources
from pipelines.experiment import Experiment
from pipelines.registry.package import log_package
from pipelines.tracking.store import Store
from pipelines.training.config import TrainingRun
from tests.pipelines import forked

CORPUS = PreparedCorpus("files", "0" * 32, {})


def log_untrained(
    store: Store, experiment: Experiment, seed: int = 0, sources: Mapping[str, bytes] | None = None
) -> tuple[str, str]:
    """The run and the models:/ URI of a model with random weights, and with today's sources unless
    others are given."""
    torch.manual_seed(seed)
    weights = build_model(experiment.model).state_dict()
    run = store.create("fit", f"untrained {seed}", "fit")
    data = experiment.model_dump(mode="json")
    params = experiment.training_run().params
    code = sources or read_sources()
    return run, log_package(store, run, data, params, weights, CORPUS, code)


def isolated_forked(patch: pytest.MonkeyPatch) -> None:
    """Run packaged models in processes that have all libraries in memory, but no `dca`."""

    def run(module: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return forked.run([sys.executable, "-m", module, *arguments], without=["dca"])

    patch.setattr(isolated, "_run_in_fork", run)


def timed_forked(patch: pytest.MonkeyPatch) -> None:
    """Time steps for a moment, in processes that have PyTorch in memory; test_estimate.py has the
    real ones."""
    patch.setattr(timing, "get_context", lambda _: forked.FORKS)
    patch.setattr(timing, "end_with_parent", int)  # the parent is what forks
    patch.setattr(timing, "_time_all", _time_briefly)


def _time_briefly(runs: Sequence[TrainingRun], text: Path, number: int) -> list[float]:
    """In a process that knows nothing of these patches."""
    timing.TIMED_SECONDS = 0.1
    return timing._time_all(runs, text, number)
