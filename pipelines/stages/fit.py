"""fit: the winner trained at its full budget, and packaged."""

from collections.abc import Mapping

from pipelines.engine.stage import Context, Outputs, Stage
from pipelines.experiment import Experiment
from pipelines.stages.recorded_training import (
    TRAINING_SOURCES,
    describe_run,
    package,
    train_recorded,
)
from pipelines.tracking import descriptions
from pipelines.training.config import TrainingRun


def fit(context: Context[Experiment], needs: Mapping[str, Outputs]) -> Outputs:
    """Train, resuming what a killed command began; package the best checkpoint."""
    config = context.config.fit_run(needs["select"]["values"])
    folder = context.storage / "fits" / context.run_id
    describe_run(context.store, context.run_id, config, context.storage, needs["corpus"])
    _explain(context, config, needs["select"])
    history = train_recorded(context, config, needs["corpus"], folder, key="fit.resources")
    return package(context, config, needs["corpus"], folder, history)


def _explain(context: Context[Experiment], config: TrainingRun, selected: Outputs) -> None:
    trial = descriptions.run_link(
        f"trial {selected['trial']}", context.store.experiment_id, selected["run_id"]
    )
    values = {
        **selected["values"],
        "train.tokens": config.train.tokens,
        "resources.workers": config.resources.workers,
    }
    note = descriptions.describe_fit(values, config.train.tokens, trial, context.pipeline_run)
    context.store.describe(note, context.run_id)


STAGE = Stage(
    name="fit",
    run=fit,
    depends_on=("corpus", "select"),
    config_keys=("seed", "model", "train", "fit.tokens"),
    sources=(
        *TRAINING_SOURCES,
        "pipelines/stages/fit.py",
        "pipelines/stages/recorded_training.py",
        "pipelines/registry/package.py",
        "pipelines/registry/packaged_model.py",
    ),
)
