"""Packaged models made in a moment, without training."""

import torch

from dca import build_model
from pipelines.runtime.config import Config, run_params
from pipelines.runtime.package import log_package
from pipelines.runtime.tracking import Store

CORPUS = {"name": "files", "fingerprint": "0" * 32}


def log_untrained(store: Store, config: Config, seed: int = 0) -> tuple[str, str]:
    """The run and the models:/ URI of a model with random weights."""
    torch.manual_seed(seed)
    weights = build_model(config.model).state_dict()
    run = store.create("fit", f"untrained {seed}", "fit")
    data = config.model_dump(mode="json")
    return run, log_package(run, data, run_params(config), weights, CORPUS)
