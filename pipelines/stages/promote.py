"""promote: the gate. The challenger becomes champion if it is better on the same sealed bytes."""

from collections.abc import Mapping

from pipelines.data.splits import sealed_test
from pipelines.engine.stage import Context, Outputs, Stage
from pipelines.experiment import Experiment
from pipelines.registry.config import PromoteConfig
from pipelines.registry.gate import PATIENCE_SECONDS, _key, decide
from pipelines.registry.versions import Registry
from pipelines.storage.files import temporary_copy
from pipelines.tracking.locks import exclusive_lock


def promote(context: Context[Experiment], needs: Mapping[str, Outputs]) -> Outputs:
    """Decide about the registered version, once; a rerun finishes what was cut short."""
    version = int(needs["register"]["version"])
    registry = Registry(context.store.client, needs["register"]["model"])
    fingerprint = needs["evaluate"]["fingerprint"]
    with (
        context.progress.working("promote: waiting for another process, or deciding"),
        exclusive_lock(f"champion of {registry.name}", wait_seconds=PATIENCE_SECONDS),
    ):
        text = _earlier_decision(registry, version, context.config.promote, fingerprint)
        if text is None:
            with temporary_copy(sealed_test(context.storage, fingerprint)) as test:
                text = decide(registry, version, context.config.promote, test, fingerprint).text
        champion = registry.standing().champion
    return {"model": registry.name, "champion": champion, "decision": text}


def _earlier_decision(
    registry: Registry, version: int, settings: PromoteConfig, fingerprint: str
) -> str | None:
    """What was decided about a version before, if a sweep must leave it at that."""
    tags, champion = registry.get(version).tags, registry.standing().champion
    if champion == version:
        earned = tags.get("gate.promoted") == "true"
        return tags["gate.decision"] if earned else "promoted: by hand"
    if version in [promotion.version for promotion in registry.promotions()]:
        kept = "no version is" if champion is None else f"kept version {champion}, which is"
        return f"{kept} champion since; version {version} was: promote.py can bring it back"
    if tags.get("gate.key") == _key(settings.model_dump(), fingerprint, champion):
        return None if tags.get("gate.promoted") == "true" else tags.get("gate.decision")
    return None


STAGE = Stage(name="promote", run=promote, depends_on=("evaluate", "register"), cached=False)
