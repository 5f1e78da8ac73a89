"""What the process that commands are forked from has in memory: it imports this first.

A search for garbage writes into each object that it looks at, so that a fork copies all memory of
that process: half a second for each command, most of which take less. What is here is no garbage.
"""

import gc
import importlib

MODULES = (
    *("pipelines.promote", "pipelines.generate", "pipelines.report", "pipelines.train"),
    *("pipelines.experiment", "pipelines.registry.versions", "pipelines.stages.search"),
    *("pipelines.search.run", "pipelines.stages.recorded_training", "pipelines.cluster.memory"),
    *("pipelines.reporting.loading", "pipelines.reporting.page.publish", "pipelines.cost.estimate"),
    *("dca.architectures.gpt", "dca.residuals.standard", "dca.residuals.dca"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
    *("mlflow.pyfunc", "torch._dynamo", "tests.pipelines.packages"),
)
"""`torch._dynamo` is imported by the first optimizer that is made."""

gc.disable()
for name in MODULES:
    importlib.import_module(name)
gc.collect()
gc.freeze()
gc.enable()
