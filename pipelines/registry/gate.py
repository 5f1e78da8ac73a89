"""promote: the gate. The challenger becomes champion if it is better on the same sealed bytes."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.console.errors import ConfigError, DamagedError, PipelineError
from pipelines.engine.cache import json_digest
from pipelines.registry.config import PromoteConfig
from pipelines.registry.score import FILE, Score, block_edges, score
from pipelines.registry.versions import ChampionState, ConcurrentPromotionError, Registry
from pipelines.tracking.provenance import provenance

RESAMPLES = 9999
SAME_BITS = 1e-4
"""Bits per byte by which two measurements of one model on one text may differ, on any machine."""
PATIENCE_SECONDS = 3600
"""How long to wait while another process of this machine decides about the same champion."""


@dataclass(frozen=True)
class Decision:
    """What the gate found about a version, and why."""

    version: int
    promoted: bool
    reason: str
    champion: int | None
    """The champion it was held against."""
    fingerprint: str
    """Of the corpus whose test bytes both were evaluated on."""
    settings: dict[str, Any]
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """One line."""
        kept = "not promoted" if self.champion is None else f"kept version {self.champion}"
        return f"{'promoted' if self.promoted else kept}: {self.reason}"


def decide(
    registry: Registry,
    version: int,
    settings: PromoteConfig,
    test: Path,
    fingerprint: str,
    *,
    dry: bool = False,
) -> Decision:
    """Hold a version against the champion; move the alias or leave it; write down why.

    Overtaken by another promotion it decides again, against the new champion. Dry, it writes
    nothing. Raises PipelineError if a model cannot be read back.
    """
    while True:
        seen = registry.standing(settle=not dry)
        if seen.champion == version:
            already = "it is the champion already"
            return Decision(version, False, already, version, fingerprint, settings.model_dump())
        decision = _judge(registry, version, seen, settings, test, fingerprint, dry)
        if dry:
            return decision
        _record(registry, decision)  # before the move: killed in between, the next one decides
        try:
            if decision.promoted:
                registry.promote(version, "promoted", decision.reason, seen)
            return decision
        except ConcurrentPromotionError:
            continue


def force(registry: Registry, version: int, reason: str, *, dry: bool = False) -> Decision:
    """Make a version champion past the gate, and say so for ever.

    Raises ConfigError if it is champion, Overtaken if the champion moves meanwhile.
    """
    seen = registry.standing(settle=not dry)
    if seen.champion == version:
        raise ConfigError(f"{registry.name} version {version} is the champion already")
    decision = Decision(version, True, f"forced: {reason}", seen.champion, "", {})
    if not dry:
        registry.promote(version, "forced", reason, seen)
        _record(registry, decision)
    return decision


def rollback(registry: Registry, reason: str, *, dry: bool = False) -> tuple[int | None, int]:
    """Make the champion before the present one champion again; both versions, present one first.

    Raises ConfigError if there was none before, Overtaken if the champion moves meanwhile.
    """
    seen = registry.standing(settle=not dry)
    before = registry.before(seen.champion)
    if before is None:
        raise ConfigError(f"{registry.name}: there is no earlier champion to go back to")
    if not dry:
        registry.promote(before, "rolled back", reason, seen)
    return seen.champion, before


def _judge(
    registry: Registry,
    version: int,
    seen: ChampionState,
    settings: PromoteConfig,
    test: Path,
    fingerprint: str,
    dry: bool,
) -> Decision:
    numbers: dict[str, float] = {}

    def outcome(promoted: bool, reason: str) -> Decision:
        limits = settings.model_dump()
        return Decision(version, promoted, reason, seen.champion, fingerprint, limits, numbers)

    try:
        mine = score(registry.model_id(version), test)
    except DamagedError as error:
        return outcome(False, f"it cannot be read back: {error}")
    numbers |= {
        "bits_per_byte": mine.bits_per_byte,
        "parameters": mine.parameters,
        "bytes_per_second": mine.bytes_per_second,
        "latency_seconds": mine.latency_seconds,
    }

    if problem := _problem(registry.get(version).tags, mine, settings, fingerprint):
        return outcome(False, problem)
    if seen.champion is None:
        return outcome(True, f"{mine.bits_per_byte:.4f} bits per byte; there was no champion")
    other = _kept_score(registry, seen.champion, test, mine.text_bytes, fingerprint, dry)
    if not math.isfinite(other.bits_per_byte):
        return outcome(True, f"the bits per byte of version {seen.champion} are not finite")
    gain, least = _gain(mine, other, settings.confidence)
    numbers |= {"champion_bits_per_byte": other.bits_per_byte, "gain": gain, "least_gain": least}
    better = least > settings.min_improvement
    return outcome(
        better,
        f"{mine.bits_per_byte:.4f} against {other.bits_per_byte:.4f} bits per byte of version "
        f"{seen.champion} on the same test bytes, a gain of {gain:.4f}; with "
        f"{settings.confidence:g} confidence at least {least:.4f}, "
        f"{'' if better else 'not '}over {settings.min_improvement:g}",
    )


def _problem(
    tags: Mapping[str, str], mine: Score, settings: PromoteConfig, fingerprint: str
) -> str | None:
    """What keeps a version out whoever the champion is."""
    bits = mine.bits_per_byte
    if not math.isfinite(bits):
        return f"its bits per byte are not finite: {bits}"
    told = tags.get("test.bits_per_byte", "")
    same = tags.get("test.fingerprint") == fingerprint
    if told and same and not abs(float(told) - bits) <= SAME_BITS:
        return f"read back it has {bits:.4f} bits per byte, not {float(told):.4f} as evaluated"
    most, slowest, longest = (
        settings.max_parameters,
        settings.min_bytes_per_second,
        settings.max_latency_seconds,
    )
    if most is not None and mine.parameters > most:
        return f"{mine.parameters:,} parameters, over promote.max_parameters = {most:,}"
    if slowest is not None and mine.bytes_per_second < slowest:
        speed = f"{mine.bytes_per_second:.1f} bytes per second"
        return f"{speed}, under promote.min_bytes_per_second = {slowest:g}"
    if longest is not None and mine.latency_seconds > longest:
        latency = f"{mine.latency_seconds:.4f} s to the first byte"
        return f"{latency}, over promote.max_latency_seconds = {longest:g}"
    return None


def _kept_score(
    registry: Registry, champion: int, test: Path, text_bytes: int, fingerprint: str, dry: bool
) -> Score:
    """The champion's score on these test bytes: known, or measured now by its own code."""
    file = FILE.format(fingerprint)
    known = Score.read(registry.read(champion, file), text_bytes)
    if known is not None:
        return known
    try:
        found = score(registry.model_id(champion), test)
    except PipelineError as error:
        raise PipelineError(f"the champion, version {champion}, has no score: {error}") from error
    if not dry:
        registry.keep(champion, file, asdict(found))
    return found


def _gain(mine: Score, other: Score, confidence: float) -> tuple[float, float]:
    """Bits per byte gained over another model, and the least of it at a confidence.

    Blocks are resampled in pairs: neighbouring bytes are alike, those of another block hardly.
    """
    from scipy.stats import bootstrap  # half a second that the start of a sweep can do without

    gained = np.subtract(other.block_bits, mine.block_bits)
    sizes = np.diff(block_edges(mine.text_bytes))

    def mean(gained: np.ndarray, sizes: np.ndarray, axis: int) -> np.ndarray:
        return gained.sum(axis) / sizes.sum(axis)

    found = bootstrap(
        (gained, sizes),
        mean,
        n_resamples=RESAMPLES,
        batch=500,
        paired=True,
        vectorized=True,
        confidence_level=confidence,
        alternative="greater",
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(mean(gained, sizes, 0)), float(found.confidence_interval.low)


def _record(registry: Registry, decision: Decision) -> None:
    """The decision as an artifact and, last of all its tags, a line on the version."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    by = {"model": registry.name, "when": stamp, "user": provenance()["mlflow.user"]}
    data = {**by, **asdict(decision)}
    registry.keep(decision.version, f"gate/{registry.name}-{decision.version}-{stamp}.json", data)
    numbers = {f"gate.{key}": json.dumps(value) for key, value in decision.numbers.items()}
    forced = {} if decision.settings else {"gate.forced": decision.reason}
    tags = {
        **numbers,
        **forced,
        "gate.champion": str(decision.champion or "none"),
        "gate.key": _key(decision.settings, decision.fingerprint, decision.champion),
        "gate.promoted": json.dumps(decision.promoted),
        "gate.decision": decision.text,
    }
    before = {key for key in registry.get(decision.version).tags if key.startswith("gate.")}
    registry.untag(decision.version, before - set(tags) - {"gate.forced"})
    registry.tag(decision.version, tags)


def _key(settings: Mapping[str, Any], fingerprint: str, champion: int | None) -> str:
    return json_digest([settings, fingerprint, champion])
