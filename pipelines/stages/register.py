"""register: the candidate becomes a version of the registered model, and its challenger."""

from collections.abc import Mapping
from typing import Any

from pipelines.compat.mlflow import COMMIT_TAG, PARENT_RUN_TAG
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
    DIRTY_TAG,
    PARAMETERS_TAG,
    PROMOTE_TAG,
    TEST_BITS_TAG,
    TEST_FINGERPRINT_TAG,
    VAL_BITS_TAG,
    VERSION_PREFIX,
)

CHALLENGER = "challenger"
"""The alias of the newest version."""


def register(context: Context[Experiment], needs: StageResults) -> Registered:
    """Create, or find, the candidate's version, with its lineage and its test result as tags."""
    fit, tested, selected = needs[Fitted], needs[Tested], needs[Selected]
    registry = Registry(context.store.client, context.config.promote.model)
    lineage = context.store.models.read_json(model_id_of(fit.model_uri), LINEAGE)
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
            "test_bits_per_byte": tested.test_bits_per_byte,
            "val_bits_per_byte": fit.val_bits_per_byte,
        },
    )
    return Registered(registry.name, version)


def _tags(context: Context[Experiment], needs: StageResults, search_run: str) -> dict[str, str]:
    """What the version is the result of."""
    fit, tested, selected = needs[Fitted], needs[Tested], needs[Selected]
    return {
        PROMOTE_TAG: context.config.promote.model_dump_json(),
        "experiment": context.config.experiment,
        "pipeline_run": context.pipeline_run,
        "search_run": search_run,
        "trial_run": selected.run_id,
        "trial": str(selected.trial),
        "fit_run": fit.run_id,
        "corpus": needs[PreparedCorpus].name,
        TEST_FINGERPRINT_TAG: tested.fingerprint,
        TEST_BITS_TAG: repr(tested.test_bits_per_byte),
        VAL_BITS_TAG: repr(fit.val_bits_per_byte),
        PARAMETERS_TAG: str(fit.parameters),
    }


def _lineage_tags(lineage: Mapping[str, Any]) -> dict[str, str]:
    """The machine, the packages and the commit that it was trained with."""
    made_by, hardware = lineage["provenance"], lineage["hardware"]
    packages = [
        f"{name.removeprefix(VERSION_PREFIX)} {value}"
        for name, value in made_by.items()
        if name.startswith(VERSION_PREFIX)
    ]
    return {
        "hardware": ", ".join([hardware["processor"], *hardware["gpus"]]),
        "packages": ", ".join(packages),
        "commit": made_by.get(COMMIT_TAG, "unknown"),
        "dirty": made_by.get(DIRTY_TAG, "unknown"),
    }


STAGE = Stage(
    name="register",
    result=Registered,
    run=register,
    depends_on=("corpus", "select", "fit", "evaluate"),
    cached=False,
)
