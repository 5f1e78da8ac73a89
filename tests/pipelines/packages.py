"""Packaged models made in a moment, without training."""

import torch

from dca import build_model
from pipelines.experiment import Experiment
from pipelines.registry.package import log_package
from pipelines.tracking.store import Store

CORPUS = {"name": "files", "fingerprint": "0" * 32}


def log_untrained(store: Store, config: Experiment, seed: int = 0) -> tuple[str, str]:
    """The run and the models:/ URI of a model with random weights."""
    torch.manual_seed(seed)
    weights = build_model(config.model).state_dict()
    run = store.create("fit", f"untrained {seed}", "fit")
    data = config.model_dump(mode="json")
    return run, log_package(run, data, config.params, weights, CORPUS)
