"""train: one training run of the configuration as it is, without a search."""

from pipelines.data.fingerprint import PreparedCorpus
from pipelines.engine.code import require_same_code
from pipelines.engine.results import StageResults
from pipelines.engine.stage import Context, Stage
from pipelines.experiment import Experiment
from pipelines.registry.package import verify_fitted
from pipelines.registry.results import Fitted
from pipelines.tracking.schema import TRAIN_KIND


def train(context: Context[Experiment], needs: StageResults) -> Fitted:
    """Train the configuration; returns the packaged model and its validation loss."""
    from pipelines.stages.recorded_training import describe_run, train_and_package

    config, corpus = context.config.training_run(), needs[PreparedCorpus]
    require_same_code(STAGE.modules(context.config), context.sources)
    describe_run(context, config, corpus)
    return train_and_package(context, config, corpus, key="resources")


STAGE = Stage(
    name=TRAIN_KIND,
    result=Fitted,
    run=train,
    depends_on=("corpus",),
    config_keys=("seed", "model", "train"),
    modules=lambda config: ("pipelines.stages.train", *config.model_modules()),
    verify=verify_fitted,
)
