"""promote: the gate. The challenger becomes champion if it is better on the same test bytes."""

from collections.abc import Mapping

from pipelines.data.splits import sealed_test
from pipelines.engine.stage import Context, Outputs, Stage
from pipelines.experiment import Experiment
from pipelines.registry.champions import Champions
from pipelines.registry.gate import Gate, earlier_decision, gate_lock
from pipelines.registry.versions import Registry
from pipelines.storage.files import temporary_copy


def promote(context: Context[Experiment], needs: Mapping[str, Outputs]) -> Outputs:
    """Decide about the registered version, once; a rerun completes an interrupted promotion."""
    version = int(needs["register"]["version"])
    registry = Registry(context.store.client, needs["register"]["model"])
    fingerprint, settings = needs["evaluate"]["fingerprint"], context.config.promote
    with (
        context.progress.working("promote: waiting for another process, or deciding"),
        gate_lock(registry),
    ):
        text = earlier_decision(registry, version, settings, fingerprint)
        if text is None:
            with temporary_copy(sealed_test(context.storage, fingerprint)) as test:
                text = Gate(registry, settings, test, fingerprint).decide(version).summary
        champion = Champions(registry).state().champion
    return {"model": registry.name, "champion": champion, "decision": text}


STAGE = Stage(name="promote", run=promote, depends_on=("evaluate", "register"), cached=False)
