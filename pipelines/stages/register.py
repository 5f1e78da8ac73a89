"""register: the candidate becomes a version of the registered model, and its challenger."""

from collections.abc import Mapping

from pipelines.engine.stage import Context, Outputs, Stage
from pipelines.experiment import Experiment
from pipelines.registry.package import LINEAGE
from pipelines.registry.versions import Registry
from pipelines.tracking import descriptions
from pipelines.tracking.models import read_model_json


def register(context: Context[Experiment], needs: Mapping[str, Outputs]) -> Outputs:
    """Make, or find, the candidate's version, with its lineage and its test result as tags."""
    fit, tested, selected = needs["fit"], needs["evaluate"], needs["select"]
    trial = context.store.client.get_run(selected["run_id"])
    lineage = read_model_json(fit["model_uri"].removeprefix("models:/"), LINEAGE)
    packages = [
        f"{name.removeprefix('version.')} {value}"
        for name, value in lineage["provenance"].items()
        if name.startswith("version.")
    ]
    registry = Registry(context.store.client, context.config.promote.model)
    search_run = trial.data.tags.get("mlflow.parentRunId", "")
    runs = {
        "pipeline": context.pipeline_run,
        "search": search_run,
        f"trial {selected['trial']}": selected["run_id"],
        "fit": fit["run_id"],
    }
    version = registry.register(
        fit["model_uri"],
        fit["run_id"],
        {
            "promote": context.config.promote.model_dump_json(),
            "experiment": context.config.experiment,
            "pipeline_run": context.pipeline_run,
            "search_run": search_run,
            "trial_run": selected["run_id"],
            "trial": str(selected["trial"]),
            "fit_run": fit["run_id"],
            "hardware": ", ".join([lineage["hardware"]["processor"], *lineage["hardware"]["gpus"]]),
            "packages": ", ".join(packages),
            "commit": lineage["provenance"].get("mlflow.source.git.commit", "unknown"),
            "dirty": lineage["provenance"].get("git.dirty", "unknown"),
            "corpus": needs["corpus"]["name"],
            "test.fingerprint": tested["fingerprint"],
            "test.bits_per_byte": repr(tested["test_bits_per_byte"]),
            "val.bits_per_byte": repr(fit["val_bits_per_byte"]),
            "parameters": str(fit["parameters"]),
        },
        descriptions.describe_version(
            tested["test_bits_per_byte"],
            [
                descriptions.run_link(name, context.store.experiment_id, run)
                for name, run in runs.items()
            ],
            fit["model_uri"],
        ),
    )
    registry.point("challenger", version)
    context.store.log_metrics(
        context.pipeline_run,
        {
            "test_bits_per_byte": tested["test_bits_per_byte"],
            "val_bits_per_byte": fit["val_bits_per_byte"],
        },
    )
    return {"model": registry.name, "version": version}


STAGE = Stage(
    name="register",
    run=register,
    depends_on=("corpus", "select", "fit", "evaluate"),
    cached=False,
)
