"""promote: the gate. The challenger becomes champion if it is better on the same test bytes."""

from contextlib import ExitStack

from pipelines.data.splits import sealed_test
from pipelines.engine.results import StageResults
from pipelines.engine.stage import Context, Stage
from pipelines.experiment import Experiment
from pipelines.registry.champions import Champions
from pipelines.registry.gate import Gate, earlier_decision, gate_lock
from pipelines.registry.results import Compared, Promoted, Registered, Tested
from pipelines.registry.versions import Registry
from pipelines.storage.files import temporary_copy


def promote(context: Context[Experiment], needs: StageResults) -> Promoted:
    """Decide about the registered version, once; a rerun completes an interrupted promotion."""
    version = needs[Registered].version
    registry = Registry(context.store.client, needs[Registered].model)
    compared, settings = needs.get(Compared), context.config.promote
    tested = needs.at(compared.winner)[Tested] if compared else needs[Tested]
    fingerprint = tested.fingerprint
    with (
        context.progress.working("promote: waiting for another process, or deciding"),
        gate_lock(registry),
    ):
        text = earlier_decision(registry, version, settings, fingerprint)
        if text is None:
            with ExitStack() as kept:
                copying = "  promote: copying the test split"
                with context.progress.watching(lambda: copying, stage="promote"):
                    split = sealed_test(context.storage, fingerprint)
                    test = kept.enter_context(temporary_copy(split))
                gate = Gate(
                    *(registry, settings, test, fingerprint, context.storage),
                    progress=context.progress,
                )
                text = gate.decide(version).summary
        champion = Champions(registry).state().champion
    return Promoted(registry.name, champion, text)


STAGE = Stage(
    name="promote",
    result=Promoted,
    run=promote,
    depends_on=("evaluate", "compare", "register"),
    cached=False,
)
