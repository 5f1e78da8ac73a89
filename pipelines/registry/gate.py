"""The gate: a version becomes champion if it is better on the same test bytes.

Used by the stage promote and by promote.py. Every decision is stored with its reason, as tags
and an artifact of the version.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.console.errors import BlockedError, ConfigError, DamagedError, PipelineError, Problem
from pipelines.console.progress import Progress
from pipelines.console.secrets import redact
from pipelines.console.text import counted, first_line
from pipelines.console.updates import OutputMode
from pipelines.data.overlap import overlap_share, overlap_text
from pipelines.data.splits import find_splits
from pipelines.engine.results import json_digest
from pipelines.registry.champions import (
    FORCED,
    PROMOTED,
    ROLLED_BACK,
    Champions,
    ChampionState,
    ConcurrentPromotionError,
)
from pipelines.registry.config import PromoteConfig
from pipelines.registry.score import NotCausalError, Score, score, windows_text
from pipelines.registry.statistics import paired_gain, spending_text, spent_confidence
from pipelines.registry.versions import Registry
from pipelines.storage.digests import sha256_of
from pipelines.storage.files import local_copy
from pipelines.storage.remote import Folder
from pipelines.tracking.locks import exclusive_lock
from pipelines.tracking.provenance import user
from pipelines.tracking.schema import (
    BLOCK_CORRELATION,
    CHALLENGER_NUMBER,
    CHALLENGERS,
    CHAMPION_BITS,
    COMPARED_SEQ_LEN,
    DECISION_FILE,
    DECISION_TAG,
    FORCED_TAG,
    GAIN,
    GAIN_CONFIDENCE,
    GAIN_ERROR,
    GATE_CHAMPION_TAG,
    GATE_KEY_TAG,
    GATE_TAG,
    MIN_GAIN,
    PROMOTED_TAG,
    SCORE_FILE,
    VersionTags,
)

MAX_REMEASURED_DIFFERENCE = 1e-4
"""Bits per byte by which two measurements of one model on one text may differ, on any machine."""
BITS = "bits_per_byte"
"""Number of a decision: the version's, in the windows of the comparison if there was one."""
LOCK_WAIT_SECONDS = 3600
"""How long to wait while another process of this machine decides about the same champion."""


@dataclass(frozen=True)
class Decision:
    """What the gate decided about a version, and why."""

    version: int
    promoted: bool
    reason: str
    champion: int | None
    """The champion it was compared with."""
    fingerprint: str
    """The fingerprint of the corpus on whose test bytes both were evaluated."""
    settings: dict[str, Any]
    """The gate's settings; empty if it was bypassed."""
    numbers: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What else must be known to judge it: how many challengers there were, and the like."""

    @property
    def summary(self) -> str:
        """The decision, its reason and the notes in one line."""
        kept = "not promoted" if self.champion is None else f"kept version {self.champion}"
        return "; ".join([f"{PROMOTED if self.promoted else kept}: {self.reason}", *self.notes])


@contextmanager
def gate_lock(registry: Registry) -> Iterator[None]:
    """Hold the lock on the champion, among the processes of this machine. Raises PipelineError."""
    with exclusive_lock(f"champion of {registry.name}", wait_seconds=LOCK_WAIT_SECONDS):
        yield


@dataclass(frozen=True)
class Gate:
    """The comparison of versions of one registered model with its champion on one text."""

    registry: Registry
    settings: PromoteConfig
    test: Path
    """Path of the test bytes."""
    fingerprint: str
    """The fingerprint of the corpus they belong to."""
    storage: Folder
    """Where the corpora of earlier trainings are, if they still are."""
    dry_run: bool = False
    """Whether nothing is written."""
    progress: Progress = field(default_factory=partial(Progress, OutputMode.QUIET))

    def decide(self, version: int) -> Decision:
        """Compare a version with the champion, set the alias if it is better, store the decision.

        If another promotion is faster, the decision is repeated against the new champion. Raises
        PipelineError if the champion cannot be loaded.
        """
        champions = Champions(self.registry)
        while True:
            seen = champions.state(reconcile=not self.dry_run)
            if seen.champion == version:
                return self._decision(version, seen, False, "it is the champion already")
            decision = self._compare(version, seen)
            if self.dry_run:
                return decision
            # Before the alias: if this process is killed, the next one decides.
            _record(self.registry, decision)
            try:
                if decision.promoted:
                    champions.promote(version, PROMOTED, decision.reason, seen)
                return decision
            except ConcurrentPromotionError:
                continue

    def _compare(self, version: int, seen: ChampionState) -> Decision:
        """The decision about a version, given the champion."""
        decision = partial(self._decision, version, seen)
        try:
            found = self._score(version, f"promote: version {version}")
        except DamagedError as error:
            return decision(False, f"it cannot be read back: {error}")
        except NotCausalError as error:
            return decision(False, str(error))
        numbers = {
            BITS: found.bits_per_byte,
            "parameters": found.parameters,
            "bytes_per_second": found.bytes_per_second,
            "latency_seconds": found.latency_seconds,
        }
        if reason := self._disqualification(version, found):
            return decision(False, reason, numbers)
        if seen.champion is None:
            reason = f"{found.bits_per_byte:.4f} bits per byte; there was no champion"
            return decision(True, reason, numbers)
        try:
            best = self._champion_score(seen.champion, found, version)
        except NotCausalError as error:
            return decision(True, f"version {seen.champion} cannot be compared: {error}", numbers)
        if not math.isfinite(best.bits_per_byte):
            reason = f"the bits per byte of version {seen.champion} are not finite"
            return decision(True, reason, numbers)
        if best.seq_len < found.seq_len:  # both in the same windows
            name = f"promote: version {version} in shorter windows"
            found = self._score(version, name, max_seq_len=best.seq_len)
        return self._judge(version, seen, found, best, numbers)

    def _judge(
        self,
        version: int,
        seen: ChampionState,
        challenger: Score,
        champion: Score,
        numbers: dict[str, float],
    ) -> Decision:
        """The decision, given both scores in the same windows."""
        gain, asked = paired_gain(challenger, champion), self.settings.confidence
        number, challengers = Champions(self.registry).number_challenger(
            sha256_of(self.test),
            self.fingerprint,
            self.registry.model_id(version),
            dry_run=self.dry_run,
        )
        tried, confidence = f"challenger {number} of {challengers} tried on this test text", asked
        if self.settings.multiplicity == "spend":
            confidence = spent_confidence(asked, number)
            least = self.settings.min_improvement
            tried += f": {spending_text(gain, asked, number, challengers, least)}"
        lower_bound = gain.lower_bound(confidence)
        better = lower_bound > self.settings.min_improvement
        reason = (
            f"{challenger.bits_per_byte:.4f} against {champion.bits_per_byte:.4f} bits per byte of "
            f"version {seen.champion} on the same test bytes {windows_text(challenger, champion)}, "
            f"a gain of {gain.mean:.4f}; with {confidence:.6g} confidence at least "
            f"{lower_bound:.4f}, {'' if better else 'not '}over {self.settings.min_improvement:g}"
        )
        numbers |= {
            BITS: challenger.bits_per_byte,
            CHAMPION_BITS: champion.bits_per_byte,
            GAIN: gain.mean,
            MIN_GAIN: lower_bound,
            GAIN_ERROR: gain.standard_error,
            BLOCK_CORRELATION: gain.correlation,
            GAIN_CONFIDENCE: confidence,
            COMPARED_SEQ_LEN: challenger.seq_len,
            CHALLENGER_NUMBER: number,
            CHALLENGERS: challengers,
        }
        notes = [tried, *self._other_text(seen)]
        return self._decision(version, seen, better, reason, numbers, notes)

    def _decision(
        self,
        version: int,
        seen: ChampionState,
        promoted: bool,
        reason: str,
        numbers: Mapping[str, float] | None = None,
        notes: Sequence[str] = (),
    ) -> Decision:
        """A decision; without a comparison, its note is how many of those there were, if any."""
        if not notes:
            tried = Champions(self.registry).tried(sha256_of(self.test), self.fingerprint)
            notes = [f"challengers tried on this test text: {len(tried)}"] if tried else []
        return Decision(
            *(version, promoted, reason, seen.champion, self.fingerprint),
            *(self.settings.model_dump(), dict(numbers or {}), list(notes)),
        )

    def _other_text(self, seen: ChampionState) -> list[str]:
        """What is known about the training text of a champion that was trained on another text."""
        assert seen.champion is not None
        fingerprint = VersionTags.of(self.registry.get(seen.champion)).test_fingerprint
        if fingerprint == self.fingerprint:
            return []
        note = f"version {seen.champion} was trained on another text"
        unknown = "whether it has these bytes cannot be known"
        try:
            text = "  promote: what the champion's training text has too"
            with self.progress.watching(lambda: text, stage="promote"):
                splits = find_splits(self.storage, fingerprint) if fingerprint else None
                share = overlap_share(local_copy(splits["train"]), self.test) if splits else None
        except PipelineError as error:  # as of a full disk: the decision does not depend on it
            return [f"{note}: {unknown}: {first_line(error)}"]
        gone = f"{note}, which is not in storage: {unknown}"
        return [gone if share is None else f"{note}: {overlap_text(share)}"]

    def _disqualification(self, version: int, challenger_score: Score) -> str | None:
        """Why a version cannot be promoted, whichever version is champion; None if it can."""
        bits, limits = challenger_score.bits_per_byte, self.settings
        if not math.isfinite(bits):
            return f"its bits per byte are not finite: {bits}"
        tags = VersionTags.of(self.registry.get(version))
        if tags.test_bits is not None and tags.test_fingerprint == self.fingerprint:
            evaluated = tags.test_bits
            if not abs(evaluated - bits) <= MAX_REMEASURED_DIFFERENCE:  # also where it is NaN
                return f"re-measured at {bits:.4f} bits per byte, but evaluated at {evaluated:.4f}"
        if (
            limits.max_parameters is not None
            and challenger_score.parameters > limits.max_parameters
        ):
            limit = f"promote.max_parameters = {limits.max_parameters:,}"
            return f"{counted(challenger_score.parameters, 'parameter')}, over {limit}"
        speed, min_speed = challenger_score.bytes_per_second, limits.min_bytes_per_second
        if min_speed is not None and speed < min_speed:
            limit = f"promote.min_bytes_per_second = {min_speed:g}"
            return f"{speed:.1f} bytes per second, under {limit}"
        latency, max_latency = challenger_score.latency_seconds, limits.max_latency_seconds
        if max_latency is not None and latency > max_latency:
            limit = f"promote.max_latency_seconds = {max_latency:g}"
            return f"{latency:.4f} s to the first byte, over {limit}"
        return None

    def _score(self, version: int, name: str, *, max_seq_len: int | None = None) -> Score:
        """Measure a version on the test bytes; how far that is has the name."""
        model_id = self.registry.model_id(version)
        models, progress = self.registry.models, self.progress
        return score(models, model_id, self.test, progress, name, max_seq_len=max_seq_len)

    def _champion_score(self, champion: int, challenger: Score, version: int) -> Score:
        """The champion's score in windows of the challenger's training, or of its own if those are
        shorter: stored, or measured now.

        A stored one counts also if the champion's own files are gone.
        """
        file = SCORE_FILE.format(self.fingerprint, challenger.seq_len)
        stored = Score.read(self.registry.read_json(champion, file), challenger.text_bytes)
        if stored is not None and stored.seq_len <= challenger.seq_len:
            return stored
        try:
            name = f"promote: version {champion}, the champion"
            found = self._score(champion, name, max_seq_len=challenger.seq_len)
        except (ConfigError, DamagedError) as error:  # the former if it is no logged model
            raise BlockedError(self._nothing_to_compare(champion, version, error)) from error
        if not self.dry_run:
            self.registry.write_json(champion, file, asdict(found))
        return found

    def _nothing_to_compare(self, champion: int, version: int, error: Exception) -> str:
        """What is gone, and how to go on."""
        return (
            f"version {version} cannot be compared with the champion, version {champion}, whose "
            f"score on this text is not stored, or gone with its files, and which cannot be "
            f"scored: {first_line(error)}; run "
            f"{Champions(self.registry).ways_on(champion, version)}"
        )


def earlier_decision(
    registry: Registry, version: int, settings: PromoteConfig, fingerprint: str
) -> str | None:
    """The decision of an earlier sweep about a version, if it still holds; else None."""
    champions = Champions(registry)
    tags = VersionTags.of(registry.get(version))
    champion = champions.state().champion
    if champion == version:
        return tags.decision if tags.promoted else f"{PROMOTED}: by hand"
    if version in [promotion.version for promotion in champions.promotions()]:
        now = "removed" if champion is None else f"replaced by version {champion}"
        return f"was champion and has been {now}; `promote.py promote {version}` restores it"
    if tags.gate_key == _key(settings.model_dump(), fingerprint, champion, tags.decision):
        return None if tags.promoted else tags.decision
    return None


def force(registry: Registry, version: int, reason: str, *, dry_run: bool = False) -> Decision:
    """Make a version champion without the gate; its tags record that.

    Raises ConfigError if it is champion, ConcurrentPromotionError if the champion moves meanwhile,
    GoneError if its files were deleted, DamagedError if they were altered: nothing could load the
    champion.
    """
    champions = Champions(registry)
    seen = champions.state(reconcile=not dry_run)
    if seen.champion == version:
        raise ConfigError(f"{registry.name} version {version} is the champion already")
    registry.models.require_whole(registry.model_id(version))
    decision = Decision(version, True, f"forced: {reason}", seen.champion, "", {})
    if not dry_run:
        champions.promote(version, FORCED, reason, seen)
        _record(registry, decision)
    return decision


def rollback(registry: Registry, reason: str, *, dry_run: bool = False) -> tuple[int | None, int]:
    """Make the previous champion champion again; returns the present version and that one.

    Raises ConfigError if there was none before whose files are as they were, and
    ConcurrentPromotionError if the champion moves meanwhile.
    """
    champions = Champions(registry)
    seen = champions.state(reconcile=not dry_run)
    before = champions.previous_champion(seen.champion)
    if before is None:
        gone = ", ".join(f"version {one}" for one in champions.earlier_champions(seen.champion))
        but = f", but for {gone}: the files are gone or were altered" if gone else ""
        message = f"there is no earlier champion to go back to{but}"
        raise ConfigError(Problem(message, source=registry.name))
    if not dry_run:
        champions.promote(before, ROLLED_BACK, reason, seen)
    return seen.champion, before


def _record(registry: Registry, decision: Decision) -> None:
    """Store the decision as an artifact and, last of all its tags, a line on the version."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    data = {"model": registry.name, "when": stamp, "user": user(), **asdict(decision)}
    name = re.sub("[#?]", "-", registry.name)  # in a server's address they would end the path
    file = DECISION_FILE.format(f"{name}-{decision.version}-{stamp}")
    registry.write_json(decision.version, file, data)
    numbers = {GATE_TAG.format(key): json.dumps(value) for key, value in decision.numbers.items()}
    forced = {} if decision.settings else {FORCED_TAG: decision.reason}
    tags = {
        **numbers,
        **forced,
        GATE_CHAMPION_TAG: str(decision.champion or "none"),
        GATE_KEY_TAG: _key(
            decision.settings, decision.fingerprint, decision.champion, redact(decision.summary)
        ),
        PROMOTED_TAG: json.dumps(decision.promoted),
        DECISION_TAG: decision.summary,
    }
    prefix = GATE_TAG.format("")
    before = {key for key in registry.get(decision.version).tags if key.startswith(prefix)}
    registry.remove_tags(decision.version, before - set(tags) - {FORCED_TAG})
    registry.tag(decision.version, tags)


def _key(
    settings: Mapping[str, Any], fingerprint: str, champion: int | None, summary: str | None
) -> str:
    """What a decision depends on, besides the version, and the decision, which may be edited."""
    return json_digest([settings, fingerprint, champion, summary])
