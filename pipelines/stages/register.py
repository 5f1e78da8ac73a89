"""register: the candidate becomes a version of the registered model, and its challenger."""

import json
from collections.abc import Mapping
from typing import Any

from pipelines.compat.mlflow import PARENT_RUN_TAG
from pipelines.console.errors import PipelineError
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.engine.results import StageResults
from pipelines.engine.stage import Context, Stage
from pipelines.experiment import Experiment
from pipelines.registry.package import LINEAGE
from pipelines.registry.results import Fitted, Registered, Tested
from pipelines.registry.versions import Registry
from pipelines.search.results import Selected
from pipelines.tracking.descriptions import describe_version, run_link
from pipelines.tracking.models import model_id_of
from pipelines.tracking.schema import (
    CORPUS_TAG,
    EXPERIMENT_TAG,
    FIT_RUN_TAG,
    HARDWARE_TAG,
    PACKAGES_TAG,
    PARAMETERS_TAG,
    PIPELINE_RUN_TAG,
    PROMOTE_TAG,
    SEARCH_RUN_TAG,
    TEST_BITS_METRIC,
    TEST_BITS_TAG,
    TEST_FINGERPRINT_TAG,
    TRIAL_NUMBER_TAG,
    TRIAL_RUN_TAG,
    VAL_BITS_METRIC,
    VAL_BITS_TAG,
    VERSION_COMMIT_TAG,
    VERSION_DIRTY_TAG,
    Provenance,
)

CHALLENGER = "challenger"
"""The alias of the newest version."""


def register(context: Context[Experiment], needs: StageResults) -> Registered:
    """Create, or find, the candidate's version, with its lineage and its test result as tags."""
    fit, tested, selected = needs[Fitted], needs[Tested], needs[Selected]
    registry = Registry(context.store.client, context.config.promote.model)
    lineage = context.store.models.read_packaged(model_id_of(fit.model_uri), LINEAGE)
    if lineage is None:
        raise PipelineError(f"{fit.model_uri}: its {LINEAGE} is gone")
    trial = context.store.client.get_run(selected.run_id)
    runs = {
        "pipeline": context.pipeline_run,
        "search": trial.data.tags.get(PARENT_RUN_TAG, ""),
        f"trial {selected.trial}": selected.run_id,
        "fit": fit.run_id,
    }
    links = [run_link(name, context.store.experiment_id, run) for name, run in runs.items()]
    version = registry.register(
        fit.model_uri,
        fit.run_id,
        _tags(context, needs, runs["search"]) | _lineage_tags(lineage),
        describe_version(tested.test_bits_per_byte, links, fit.model_uri),
    )
    registry.set_alias(CHALLENGER, version)
    context.store.log_metrics(
        context.pipeline_run,
        {
            TEST_BITS_METRIC: tested.test_bits_per_byte,
            VAL_BITS_METRIC: fit.val_bits_per_byte,
        },
    )
    return Registered(registry.name, version)


def _tags(context: Context[Experiment], needs: StageResults, search_run: str) -> dict[str, str]:
    """What the version is the result of."""
    fit, tested, selected = needs[Fitted], needs[Tested], needs[Selected]
    return {
        PROMOTE_TAG: context.config.promote.model_dump_json(),
        EXPERIMENT_TAG: context.config.experiment,
        PIPELINE_RUN_TAG: context.pipeline_run,
        SEARCH_RUN_TAG: search_run,
        TRIAL_RUN_TAG: selected.run_id,
        TRIAL_NUMBER_TAG: str(selected.trial),
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
    depends_on=("corpus", "select", "fit", "evaluate"),
    cached=False,
)
