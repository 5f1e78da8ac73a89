"""train: one training run of the configuration as it is, without a search."""

from collections.abc import Mapping

from pipelines.engine.stage import Context, Outputs, Stage
from pipelines.experiment import Experiment
from pipelines.stages.recorded_training import describe_run, train_and_package


def train(context: Context[Experiment], needs: Mapping[str, Outputs]) -> Outputs:
    """Train the configuration; returns the packaged model and its validation loss."""
    config = context.config.training_run()
    describe_run(context, config, needs["corpus"])
    return train_and_package(context, config, needs["corpus"], key="resources")


STAGE = Stage(
    name="train",
    run=train,
    depends_on=("corpus",),
    config_keys=("seed", "model", "train"),
    modules=lambda config: ("pipelines.stages.train", *config.model_modules()),
)
