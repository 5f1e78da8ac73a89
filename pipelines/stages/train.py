"""train: one training run of the configuration as it is, without a search."""

from collections.abc import Mapping

from pipelines.runtime.dag import Context, Outputs, Stage
from pipelines.stages.fit import describe_run, package, train_recorded


def train(context: Context, needs: Mapping[str, Outputs]) -> Outputs:
    """Train, resuming what a killed command began; package the best checkpoint."""
    config, corpus = context.config, needs["corpus"]
    folder = context.storage / "fits" / context.run_id
    describe_run(context.store, context.run_id, config, context.storage, corpus)
    history = train_recorded(context, config, corpus, folder, key="resources")
    return package(context, config, corpus, folder, history)


STAGE = Stage(
    name="train",
    run=train,
    needs=("corpus",),
    reads=("seed", "model", "train"),
    sources=(
        "dca",
        "pipelines/training",
        "pipelines/stages/fit.py",
        "pipelines/stages/train.py",
        "pipelines/runtime/package.py",
        "pipelines/runtime/packaged_model.py",
    ),
)
