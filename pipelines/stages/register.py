"""register: the candidate becomes a version of the registered model, and its challenger.

Also of a model that no sweep has made, for promote.py.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipelines.compat.mlflow import PARENT_RUN_TAG
from pipelines.console.errors import ConfigError, PipelineError, Problem
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.engine import dag
from pipelines.engine.results import StageResults, from_json
from pipelines.engine.stage import Context, Invocation, Stage
from pipelines.experiment import Experiment, read_experiment, read_packaged
from pipelines.registry.package import CONFIG, LINEAGE
from pipelines.registry.results import Compared, Fitted, Registered, Tested
from pipelines.registry.versions import Registry
from pipelines.search.results import Selected
from pipelines.stages import evaluate
from pipelines.stages.corpus import CorpusStage, names_text
from pipelines.tracking.descriptions import describe_pipeline, describe_version, run_link
from pipelines.tracking.models import ModelStore, model_id_of, model_uri
from pipelines.tracking.schema import (
    ARM_TAG,
    CORPUS_TAG,
    EXPERIMENT_TAG,
    FIT_RUN_TAG,
    HARDWARE_TAG,
    KIND_TAG,
    OUTPUTS_TAG,
    PACKAGES_TAG,
    PARAMETERS_TAG,
    PIPELINE_RUN_TAG,
    PROMOTE_TAG,
    SEARCH_RUN_TAG,
    STUDY_RUN_TAG,
    STUDY_TAG,
    TEST_BITS_METRIC,
    TEST_BITS_TAG,
    TEST_FINGERPRINT_TAG,
    TRAIN_KIND,
    TRIAL_NUMBER_TAG,
    TRIAL_RUN_TAG,
    VAL_BITS_METRIC,
    VAL_BITS_TAG,
    VERSION_COMMIT_TAG,
    VERSION_DIRTY_TAG,
    Provenance,
)
from pipelines.training.config import with_present_names

CHALLENGER = "challenger"
"""The alias of the newest version."""


def register(context: Context[Experiment], needs: StageResults) -> Registered:
    """Create, or find, the candidate's version, with its lineage and its test result as tags.

    Of a study the candidate is its winner.
    """
    compared = needs.get(Compared)
    needs = needs.at(compared.winner) if compared else needs
    fit, tested, selected = needs[Fitted], needs[Tested], needs.get(Selected)
    registry = Registry(context.store.client, context.config.promote.model)
    lineage = context.store.models.read_packaged(model_id_of(fit.model_uri), LINEAGE)
    if lineage is None:
        raise PipelineError(f"{fit.model_uri}: its {LINEAGE} is gone")
    runs = {"pipeline": context.pipeline_run}
    tags = _tags(context, needs) | _lineage_tags(lineage)
    if selected:
        trial = context.store.client.find_run(selected.run_id)
        search = trial.data.tags.get(PARENT_RUN_TAG, "") if trial else ""
        if trial:  # else it was removed after it was selected: its page is gone too
            runs |= {"search": search, f"trial {selected.trial}": selected.run_id}
        tags |= {
            SEARCH_RUN_TAG: search,
            TRIAL_RUN_TAG: selected.run_id,
            TRIAL_NUMBER_TAG: str(selected.trial),
        }
    runs["fit" if selected else "training"] = fit.run_id
    if compared:
        runs["study"] = compared.run_id
        arm = {ARM_TAG: str(compared.winner[0])} if context.config.arms else {}
        tags |= {STUDY_RUN_TAG: compared.run_id, STUDY_TAG: compared.sentence, **arm}
    links = [run_link(name, context.store.experiment_id, run) for name, run in runs.items()]
    version = registry.register(
        fit.model_uri,
        fit.run_id,
        tags,
        describe_version(tested.test_bits_per_byte, links, fit.model_uri),
    )
    _name_challenger(registry, version)
    context.store.log_metrics(
        context.pipeline_run,
        {
            TEST_BITS_METRIC: tested.test_bits_per_byte,
            VAL_BITS_METRIC: fit.val_bits_per_byte,
        },
    )
    return Registered(registry.name, version)


def _name_challenger(registry: Registry, version: int) -> None:
    """Set the alias to a version, unless it was registered long ago.

    Another sweep, on any machine, may have set it to a newer one since it was read here, so that
    it is looked at again after it was set.
    """
    while version > registry.aliases().get(CHALLENGER, 0):
        registry.set_alias(CHALLENGER, version)
        version = int(registry.versions()[-1].version)


def _tags(context: Context[Experiment], needs: StageResults) -> dict[str, str]:
    """What the version is the result of."""
    fit, tested = needs[Fitted], needs[Tested]
    return {
        PROMOTE_TAG: context.config.promote.model_dump_json(),
        EXPERIMENT_TAG: context.config.experiment,
        PIPELINE_RUN_TAG: context.pipeline_run,
        FIT_RUN_TAG: fit.run_id,
        CORPUS_TAG: needs[PreparedCorpus].name,
        TEST_FINGERPRINT_TAG: tested.fingerprint,
        TEST_BITS_TAG: repr(tested.test_bits_per_byte),
        VAL_BITS_TAG: repr(fit.val_bits_per_byte),
        PARAMETERS_TAG: str(fit.parameters),
    }


def _lineage_tags(lineage: Mapping[str, Any]) -> dict[str, str]:
    """The machine, the packages and the commit that it was trained with."""
    code, hardware = Provenance.of(lineage["provenance"]), lineage["hardware"]
    return {
        HARDWARE_TAG: ", ".join([hardware["processor"], *hardware["gpus"]]),
        PACKAGES_TAG: code.packages_text,
        VERSION_COMMIT_TAG: code.commit or "unknown",
        VERSION_DIRTY_TAG: "unknown" if code.dirty is None else json.dumps(code.dirty),
    }


STAGE = Stage(
    name="register",
    result=Registered,
    run=register,
    depends_on=("corpus", "select", "fit", "evaluate", "compare"),
    cached=False,
)


def register_model(
    models: ModelStore,
    model_id: str,
    label: str,
    changes: Sequence[str],
    name: str | None,
    invocation: Invocation,
) -> StageResults:
    """Evaluate and register the model of any training as that of a sweep, by the same stages.

    Args:
        models: Of the tracking store.
        model_id: Of the logged model.
        label: What errors call it.
        changes: `key=value` changes of its configuration.
        name: Of the registered model; None for that of its configuration.
        invocation: The command.

    Raises:
        ConfigError: If it is no model of train.py or sweep.py, or its text is not there any more.

    """
    config, lineage = (models.read_packaged(model_id, file) for file in (CONFIG, LINEAGE))
    run = models.client.find_run(models.client.get_logged_model(model_id).source_run_id)
    tags = run.data.tags if run else {}
    fitted = from_json(Fitted, tags.get(OUTPUTS_TAG, "null"))
    if not config or not lineage or fitted is None or fitted.model_uri != model_uri(model_id):
        raise ConfigError(Problem("expected a model of train.py or sweep.py", source=label))
    trained = tags.get(KIND_TAG) == TRAIN_KIND  # what was searched does not count
    read = read_experiment if trained else read_packaged
    experiment = read(with_present_names(config), changes, source=label)
    if name is not None:
        experiment = experiment.replace({"promote.model": name})
    corpus = CorpusStage(
        invocation.progress.mode, **lineage["corpus"], is_named=names_text(changes)
    )
    needs = ("corpus", "train")
    stages: list[Stage[Experiment, Any]] = [
        corpus.stage,
        Stage(TRAIN_KIND, Fitted, lambda *_: fitted, cached=False),
        replace(evaluate.STAGE, depends_on=needs),
        replace(STAGE, depends_on=(*needs, "evaluate")),
    ]
    notes = describe_pipeline(experiment.experiment, experiment.promote.model, invocation.argv)
    return dag.run(
        stages, experiment, invocation, lock_name=f"model {model_id}", descriptions=notes
    )
