"""register: the candidate becomes a version of the registered model, and its challenger."""

from collections.abc import Mapping

from pipelines.runtime.dag import Context, Outputs, Stage
from pipelines.runtime.tracking import Registry


def register(context: Context, needs: Mapping[str, Outputs]) -> Outputs:
    """Make, or find, the candidate's version, with its lineage and its test result as tags."""
    fit, tested, selected = needs["fit"], needs["evaluate"], needs["select"]
    registry = Registry(context.store.client, context.config.promote.model)
    version = registry.register(
        fit["model_uri"],
        fit["run_id"],
        {
            "experiment": context.config.experiment,
            "pipeline_run": context.pipeline_run,
            "trial_run": selected["run_id"],
            "corpus": needs["corpus"]["name"],
            "test.fingerprint": tested["fingerprint"],
            "test.bits_per_byte": repr(tested["test_bits_per_byte"]),
            "val.bits_per_byte": repr(fit["val_bits_per_byte"]),
            "parameters": str(fit["parameters"]),
        },
    )
    registry.point("challenger", version)
    return {"model": registry.name, "version": version}


STAGE = Stage(
    name="register",
    run=register,
    needs=("corpus", "select", "fit", "evaluate"),
    remembered=False,
)
