"""promote: the gate. The challenger becomes champion if it is better on the same sealed bytes."""

from collections.abc import Mapping

from pipelines.runtime.dag import Context, Outputs, Stage
from pipelines.runtime.tracking import ModelVersion, Registry
from pipelines.stages.evaluate import test_bits_per_byte


def promote(context: Context, needs: Mapping[str, Outputs]) -> Outputs:
    """Compare, move the alias or leave it, and write down why. Safe to repeat."""
    version = int(needs["register"]["version"])
    registry = Registry(context.store.client, needs["register"]["model"])
    champion = registry.by_alias("champion")
    if champion is None:
        return _promote(registry, version, "promoted: there was no champion")
    if int(champion.version) == version:
        decided = registry.get(version).tags.get("gate.decision", "promoted: already the champion")
        return _promote(registry, version, decided)
    fingerprint = needs["evaluate"]["fingerprint"]
    challenger_bits = float(needs["evaluate"]["test_bits_per_byte"])
    champion_bits = _bits_of(champion, context, registry, fingerprint)
    margin = context.config.promote.min_improvement
    gain = champion_bits - challenger_bits
    figures = (
        f"{challenger_bits:.4f} against {champion_bits:.4f} bits per byte of version "
        f"{champion.version} on the same test bytes, a gain of {gain:.4f}"
    )
    if gain > margin:
        registry.tag(version, {"gate.previous_champion": str(champion.version)})
        return _promote(registry, version, f"promoted: {figures}, more than {margin:g}")
    kept = int(champion.version)
    decision = f"kept version {kept}: {figures}, not over {margin:g}"
    registry.tag(version, {"gate.decision": decision})
    return {"model": registry.name, "champion": kept, "decision": decision}


def _bits_of(
    champion: ModelVersion, context: Context, registry: Registry, fingerprint: str
) -> float:
    """The champion's result on these test bytes: known, or measured now and kept."""
    tags = champion.tags
    key = f"test.bits_per_byte.{fingerprint}"
    if tags.get("test.fingerprint") == fingerprint and "test.bits_per_byte" in tags:
        return float(tags["test.bits_per_byte"])
    if key in tags:
        return float(tags[key])
    with context.progress.working("promote: the champion on the test split"):
        uri = f"models:/{registry.name}/{champion.version}"
        bits = test_bits_per_byte(context, uri, fingerprint)
    registry.tag(int(champion.version), {key: repr(bits)})
    return bits


def _promote(registry: Registry, version: int, decision: str) -> Outputs:
    """The reason first: killed in between, a rerun finds the alias unmoved and decides again."""
    registry.tag(version, {"gate.decision": decision})
    registry.point("champion", version)
    return {"model": registry.name, "champion": version, "decision": decision}


STAGE = Stage(name="promote", run=promote, needs=("evaluate", "register"), remembered=False)
