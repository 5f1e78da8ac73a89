"""train: one training run of the configuration as it is, without a search."""

from collections.abc import Mapping
from contextlib import closing

from pipelines.runtime.cluster import join, require
from pipelines.runtime.dag import Context, Outputs, Stage
from pipelines.stages.fit import describe_run, package, record
from pipelines.training import loop
from pipelines.training.data import development


def train(context: Context, needs: Mapping[str, Outputs]) -> Outputs:
    """Train here, or with several workers under Ray Train; package the best checkpoint."""
    config, store, run_id = context.config, context.store, context.run_id
    folder = context.storage / "fits" / run_id
    corpus = development(context.storage, needs["corpus"]["fingerprint"])
    say = context.progress.line
    describe_run(store, run_id, config, context.storage, needs["corpus"])
    with context.progress.working("training"):
        if config.resources.most == 1:
            with closing(loop.train(config, corpus, folder, say)) as run:
                history = record(store, run_id, run, config, context.progress)
        else:
            require(join(), config.resources, "resources")
            from pipelines.training.workers import train_with_workers

            with closing(train_with_workers(config, corpus, folder, say)) as run:
                history = record(store, run_id, run, config, context.progress)
    return package(context, config, needs["corpus"], folder, history)


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
