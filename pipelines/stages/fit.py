"""fit: the winner of the search, trained at its full budget and packaged."""

from pipelines.data.fingerprint import PreparedCorpus
from pipelines.engine.results import StageResults
from pipelines.engine.stage import Context, Stage
from pipelines.experiment import Experiment
from pipelines.registry.package import verify_fitted
from pipelines.registry.results import Fitted, Probed
from pipelines.search.results import Selected
from pipelines.tracking import descriptions
from pipelines.tracking.schema import FIT_KIND, PROBE_KIND, SELECT_KIND
from pipelines.training.config import TrainingRun


def fit(context: Context[Experiment], needs: StageResults) -> Fitted:
    """Train the selected values; returns the packaged model and its validation loss."""
    from pipelines.stages.recorded_training import describe_run, train_and_package

    corpus, selected = needs[PreparedCorpus], needs[Selected]
    config = in_budget(context.config, needs).fit_run(selected.values)
    describe_run(context, config, corpus)
    _describe_origin(context, config, selected)
    return train_and_package(context, config, corpus, key="fit.resources")


def in_budget(config: Experiment, needs: StageResults) -> Experiment:
    """The experiment of an arm of a study with the tokens that its share of the time allows."""
    probed, run = needs.get(Probed), config.fit_run(needs[Selected].values)
    tokens = probed.tokens_of(run) if probed else None
    if tokens is None:
        return config
    return config.model_copy(update={"fit": config.fit.model_copy(update={"tokens": tokens})})


def _describe_origin(context: Context[Experiment], config: TrainingRun, selected: Selected) -> None:
    """Describe in MLflow which trial was selected, and with which values."""
    trial = descriptions.run_link(
        f"trial {selected.trial}", context.store.experiment_id, selected.run_id
    )
    values = {
        **selected.values,
        "train.tokens": config.train.tokens,
        "resources.workers": config.resources.workers,
    }
    note = descriptions.describe_fit(values, config.train.tokens, trial, context.pipeline_run)
    context.store.describe(note, context.run_id)


STAGE = Stage(
    name=FIT_KIND,
    result=Fitted,
    run=fit,
    depends_on=("corpus", "select", "probe"),
    absorbed=(SELECT_KIND, PROBE_KIND),
    configured=lambda config, needs: in_budget(config, needs).as_fit(needs[Selected].values),
    config_keys=("seed", "model", "train"),
    modules=lambda config: ("pipelines.stages.fit", *config.model_modules()),
    verify=verify_fitted,
    over=("arm", "seed"),
)
