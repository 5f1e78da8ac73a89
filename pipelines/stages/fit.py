"""fit: the winner of the search, trained at its full budget and packaged.

In a study once for each arm and seed, side by side.
"""

from collections.abc import Sequence
from functools import partial

from pipelines.console.errors import ConfigError, Problem
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.engine.code import require_same_code
from pipelines.engine.results import StageResults
from pipelines.engine.stage import Context, Ended, Instance, Stage
from pipelines.experiment import Experiment
from pipelines.registry.package import verify_fitted
from pipelines.registry.results import Diverged, Fitted, Probed
from pipelines.search.results import Selected
from pipelines.tracking import descriptions
from pipelines.tracking.schema import FIT_KIND, PROBE_KIND, SELECT_KIND
from pipelines.tracking.store import Store
from pipelines.training.config import TrainingRun


def fit(context: Context[Experiment], needs: StageResults) -> Fitted:
    """Train the selected values; returns the packaged model and its validation loss."""
    from pipelines.stages.recorded_training import train_and_package

    config = _fit_run(context, needs)
    _describe(context, config, needs)
    return train_and_package(context, config, needs[PreparedCorpus], key="fit.resources")


def fit_together(
    instances: Sequence[Instance[Experiment]], ended: Ended[Fitted | Diverged]
) -> None:
    """The same for the arms and seeds of a study, in one Tune run: a divergence is a result."""
    from pipelines.stages.study.replicates import Replicate, train_together

    replicates = []
    for context, needs in instances:
        config = _fit_run(context, needs)
        describe = partial(_describe, context, config, needs)
        replicates.append(Replicate(context, config, needs[PreparedCorpus], describe))
    train_together(replicates, ended)


def _fit_run(context: Context[Experiment], needs: StageResults) -> TrainingRun:
    require_same_code(STAGE.modules(context.config), context.sources)
    return in_budget(context.config, needs).fit_run(needs[Selected].values)


def _as_fit(config: Experiment, needs: StageResults) -> Experiment:
    """The experiment of the winner's training. Raises ConfigError if `fit` has changed so that the
    winner of an earlier search does not fit it."""
    selected = needs[Selected]
    try:
        return in_budget(config, needs).as_fit(selected.values)
    except ConfigError as error:
        message = f"trial {selected.trial}, the winner of the search, does not fit it: {error}"
        ways_on = "expected another fit, or --fresh, which searches again"
        raise ConfigError(Problem(f"{message}; {ways_on}", "fit")) from None


def in_budget(config: Experiment, needs: StageResults) -> Experiment:
    """The experiment of an arm of a study with the tokens that its share of the time allows."""
    probed, run = needs.get(Probed), config.fit_run(needs[Selected].values)
    tokens = probed.tokens_of(run) if probed else None
    if tokens is None:
        return config
    return config.model_copy(update={"fit": config.fit.model_copy(update={"tokens": tokens})})


def _describe(context: Context[Experiment], config: TrainingRun, needs: StageResults) -> None:
    """Record on its run the training, its text, and which trial was selected."""
    from pipelines.stages.recorded_training import describe_run

    describe_run(context, config, needs[PreparedCorpus])
    selected = needs[Selected]
    trial = descriptions.run_link(
        f"trial {selected.trial}", context.store.experiment_id, selected.run_id
    )
    changes = in_budget(context.config, needs).fit_changes(selected.values)
    values = context.own_params(config.params) | selected.values | changes
    note = descriptions.describe_fit(values, config.train.tokens, trial, context.pipeline_run)
    context.store.describe(note, context.run_id)


def _verify(store: Store, result: Fitted | Diverged) -> None:
    if isinstance(result, Fitted):
        verify_fitted(store, result)


STAGE: Stage[Experiment, Fitted | Diverged] = Stage(
    name=FIT_KIND,
    result=Fitted | Diverged,
    run=fit,
    run_together=fit_together,
    depends_on=("corpus", "select", "probe"),
    absorbed=(SELECT_KIND, PROBE_KIND),
    configured=_as_fit,
    config_keys=("seed", "model", "train"),
    modules=lambda config: ("pipelines.stages.fit", *config.model_modules()),
    verify=_verify,
    over=("arm", "seed"),
)
