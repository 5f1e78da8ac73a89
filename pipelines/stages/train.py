"""train: one training run of the configuration as it is, without a search."""

from collections.abc import Mapping

from pipelines.engine.stage import Context, Outputs, Stage
from pipelines.experiment import Experiment
from pipelines.stages.recorded_training import (
    TRAINING_SOURCES,
    describe_run,
    package,
    train_recorded,
)


def train(context: Context[Experiment], needs: Mapping[str, Outputs]) -> Outputs:
    """Train, resuming what a killed command began; package the best checkpoint."""
    config, corpus = context.config.training_run(), needs["corpus"]
    folder = context.storage / "fits" / context.run_id
    describe_run(context.store, context.run_id, config, context.storage, corpus)
    history = train_recorded(context, config, corpus, folder, key="resources")
    return package(context, config, corpus, folder, history)


STAGE = Stage(
    name="train",
    run=train,
    depends_on=("corpus",),
    config_keys=("seed", "model", "train"),
    sources=(
        *TRAINING_SOURCES,
        "pipelines/stages/train.py",
        "pipelines/stages/recorded_training.py",
        "pipelines/registry/package.py",
        "pipelines/registry/packaged_model.py",
    ),
)
