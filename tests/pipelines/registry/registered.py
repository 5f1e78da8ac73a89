"""Registered versions made in a moment, of models without files."""

from pipelines.registry.champions import Champions
from pipelines.registry.versions import Registry
from pipelines.tracking.store import Store


def register(store: Store, count: int = 1) -> Registry:
    """The registered model `tiny` with so many versions more."""
    registry = Registry(store.client, "tiny")
    for number in range(count):
        run = store.create("fit", f"fit {number} of {count}", "fit")
        experiment = store.experiment_id
        model = store.client.create_logged_model(experiment, source_run_id=run)
        registry.register(f"models:/{model.model_id}", run, {"number": str(number)})
    return registry


def force(champions: Champions, version: int, reason: str = "test") -> None:
    """Make a version champion."""
    champions.promote(version, "forced", reason, champions.state())
