"""Which version is champion of a registered model, and the log of every promotion.

The champion is MLflow's alias `champion`. Its moves are logged as the versions of a second
registered model, NAME-champions, whose numbers the registry hands out once each, in order. An entry
contains the number of the entry it follows. Of two that follow the same one the first is valid and
the other void, for every reader of the log: so two promoters on two machines cannot both succeed.
One that was deleted in MLflow is missing from the history, and the entries behind it stay valid.
This is correct without a lock; `gate_lock` only avoids wasted work on one machine. A process killed
anywhere leaves nothing to clean up: the alias is set after the entry is written, and if that was
interrupted, the next command that reads the champion completes it. No clock decides anything.
"""

import itertools
import logging
import re
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipelines.compat.mlflow import MISSING
from pipelines.console.errors import ConfigError, DamagedError, PipelineError, RefusedError
from pipelines.console.secrets import redact
from pipelines.registry.versions import CONFLICTS, LOG_SUFFIX, Registry, search_versions
from pipelines.storage.project import command_line, script
from pipelines.tracking import descriptions
from pipelines.tracking.models import model_id_of
from pipelines.tracking.provenance import process_has_ended, this_process, user
from pipelines.tracking.schema import (
    ACTION_TAG,
    CLAIM_TAG,
    DONE_TAG,
    ENTRY_REASON_TAG,
    ENTRY_SECONDS_TAG,
    ENTRY_USER_TAG,
    ENTRY_VERSION_TAG,
    FOLLOWS_TAG,
    GAIN,
    GATE_TAG,
    MOVING_TAG,
    OF_MODEL_TAG,
    PREVIOUS_TAG,
    TEST_FINGERPRINT_TAG,
    TRIED_TAG,
    read_tag,
    to_seconds,
)

CHAMPION = "champion"
"""The alias."""
PROMOTED, FORCED, ROLLED_BACK = "promoted", "forced", "rolled back"
"""Actions of the log."""


class ConcurrentPromotionError(PipelineError):
    """Another process changed the champion after this one had read it."""


@dataclass(frozen=True)
class Promotion:
    """One entry of the log: a version became champion."""

    number: int
    """The entry's number; void entries leave gaps."""
    version: int
    """The champion from then on."""
    previous: int | None
    """The champion until then: the version that the alias named."""
    action: str
    """promoted, forced or rolled back."""
    reason: str
    user: str
    seconds: float
    """When, since 1970."""

    @staticmethod
    def of(entry: ModelVersion) -> "Promotion":
        """The promotion that an entry of the log stores.

        Raises EditedError if its tags are not what was written.
        """
        return Promotion(
            number=_number(entry),
            version=_version(entry),
            previous=read_tag(entry, PREVIOUS_TAG, int) if PREVIOUS_TAG in entry.tags else None,
            action=read_tag(entry, ACTION_TAG, str),
            reason=read_tag(entry, ENTRY_REASON_TAG, str),
            user=read_tag(entry, ENTRY_USER_TAG, str),
            seconds=read_tag(entry, ENTRY_SECONDS_TAG, to_seconds),
        )


@dataclass(frozen=True)
class ChampionState:
    """The version that is champion, and the last valid entry of the log when that was read."""

    champion: int | None
    entry: int


@dataclass(frozen=True)
class Champions:
    """The champion of a registered model and the log of its promotions."""

    registry: Registry

    @property
    def log(self) -> Registry:
        """The registered model whose versions are the entries."""
        return Registry(self.registry.client, self.registry.name + LOG_SUFFIX)

    def state(self, *, reconcile: bool = True) -> ChampionState:
        """The present champion; an interrupted promotion is completed if `reconcile`.

        Raises RefusedError if this user may not read the log.
        """
        state, settled = self._read()
        if not state.entry:
            self._require_readable(state.champion, create=reconcile)
        if reconcile and not settled:
            self.reconcile_alias()
        return state

    def promotions(self) -> list[Promotion]:
        """Every promotion, in order; without those of a deleted model of the same name."""
        versions = search_versions(self.registry.client, self.registry.name)
        sources = {str(version.version): version.source for version in versions}
        identity, entries = self.registry.identity(), self._valid_entries()
        ours = (e for e in entries if sources.get(str(_version(e)), e.source) == e.source)
        return [Promotion.of(entry) for entry in ours if _is_of(entry, identity)]

    def promote(self, version: int, action: str, reason: str, seen: ChampionState) -> None:
        """Make a version champion, unless the champion changed since `seen`.

        Raises ConcurrentPromotionError if it did; the champion is then unchanged by this call.
        """
        if self._read()[0] != seen:
            raise ConcurrentPromotionError(self._what_happened(seen))
        number = self._append(version, action, reason, seen)
        if number not in map(_number, self._valid_entries()):
            reason = self._what_happened(seen)
            client = self.registry.client
            client.update_model_version(self.log.name, str(number), f"void: {reason}")
            raise ConcurrentPromotionError(reason)
        self.reconcile_alias()

    def previous_champion(self, champion: int | None) -> int | None:
        """The champion to roll back to: the last one before whose files are as they were
        packaged."""
        return next((v for v in self.earlier_champions(champion) if self._is_whole(v)), None)

    def earlier_champions(self, champion: int | None) -> list[int]:
        """Those before a champion, the last one first, of the versions that still exist."""
        walk: list[int] = []
        for promotion in self.promotions():
            if promotion.action == ROLLED_BACK:
                while walk and walk[-1] != promotion.version:
                    walk.pop()
            elif promotion.previous is not None and promotion.previous not in walk[-1:]:
                walk.append(promotion.previous)  # the alias had been moved by hand
            walk.append(promotion.version)
        existing = {int(version.version) for version in self.registry.versions()}
        return [v for v in dict.fromkeys(reversed(walk)) if v in existing and v != champion]

    def ways_on(self, champion: int, version: int | None = None) -> str:
        """The commands that replace a champion: by the one before it if there is one, or by a
        version."""
        of_model, before = ("--model", self.registry.name), self.previous_champion(champion)
        back = command_line(script("promote.py"), "rollback", *of_model)
        back = f"`{back}`, which makes version {before} champion, or " if before else ""
        forced = ("promote", version or "VERSION", *of_model, "--force", "REASON")
        return f"{back}`{command_line(script('promote.py'), *forced)}`"

    def _is_whole(self, version: int) -> bool:
        try:
            self.registry.models.require_whole(self.registry.model_id(version))
        except (ConfigError, DamagedError):  # the former if it is no logged model
            return False
        return True

    def tried(self, text: str, fingerprint: str) -> dict[str, str]:
        """The logged models that were compared with a champion on a test text, and their numbers.

        Those that were before there were numbers, as their versions say, have none, nor have those
        whose tag was edited to what is no number.

        Args:
            text: A digest of the test bytes.
            fingerprint: Of the corpus that they are of.

        """
        found = {
            model_id_of(str(version.source)): ""
            for version in search_versions(self.registry.client, self.registry.name)
            if GATE_TAG.format(GAIN) in version.tags
            and version.tags.get(TEST_FINGERPRINT_TAG) == fingerprint
        }
        prefix = TRIED_TAG.format(text, "")
        tags = dict[str, str]()
        with suppress(RefusedError):  # of a log that is not there yet, see `_require_readable`
            tags = self.log.own_tags()
        ours = {tag.removeprefix(prefix): n for tag, n in tags.items() if tag.startswith(prefix)}
        return found | {m: n if re.fullmatch("[1-9][0-9]{0,8}", n) else "" for m, n in ours.items()}

    def number_challenger(
        self, text: str, fingerprint: str, model_id: str, *, dry_run: bool = False
    ) -> tuple[int, int]:
        """The how-many-th different challenger on a test text a model is, and of how many so far.

        It keeps its number, however often it is compared. The numbers are tags of the log's
        registered model: versions that are deleted count as before. A tag is written before all are
        counted, so that of two challengers at once, on whatever machines, none misses the other.

        Args:
            text: A digest of the test bytes.
            fingerprint: Of the corpus that they are of.
            model_id: Of the logged model.
            dry_run: Whether nothing is written.

        """
        tag = TRIED_TAG.format(text, model_id)
        if not dry_run and tag not in self.log.own_tags():
            self._create_log()
            self.log.tag_itself(tag, "")
        tried = {model_id: ""} | self.tried(text, fingerprint)
        number = tried[model_id] or str(len(tried))
        if not (dry_run or tried[model_id]):
            self.log.tag_itself(tag, number)
        return int(number), len(tried)

    def _require_readable(self, champion: int | None, *, create: bool) -> None:
        """Raise RefusedError if this user may not read the log, of which no entry was found: a
        server with grants lists none of it then. It refuses one that is not there as well: that is
        made, or without a champion taken for what it is."""
        try:
            self.log.own_tags()
        except RefusedError:
            if create:
                self._create_log()
                self.log.own_tags()
            elif champion is not None:
                raise

    def _create_log(self) -> None:
        """Unless there is one."""
        self.log.create(descriptions.describe_champions(self.registry.name))

    def reconcile_alias(self) -> None:
        """Set the alias to the last entry's version, also while other processes write entries."""
        log, entries = self.log, self._valid_entries()
        named = self.registry.aliases().get(CHAMPION)
        marks = _late_marks(entries, named)
        if marks and _version(entries[-1]) != named:
            logging.getLogger(__name__).warning(
                "%s: the alias %s is moved back from version %s to version %s: an interrupted "
                "promotion may have moved it late; if it was moved by hand, move it again",
                *(self.registry.name, CHAMPION, named, _version(entries[-1])),
            )
        marks += [(e, tag) for e in entries for tag in _moves(e) if process_has_ended(e.tags[tag])]
        own = MOVING_TAG.format(uuid.uuid4().hex)
        while True:
            last = entries[-1]
            log.tag(_number(last), {own: this_process()})
            marks.append((last, own))
            if self._version_exists(last):
                self.registry.set_alias(CHAMPION, _version(last))
            log.tag(_number(last), {DONE_TAG: "true"})
            entries = self._valid_entries()
            if _number(entries[-1]) == _number(last):
                break
        for entry, tag in marks:
            log.remove_tags(_number(entry), [tag])

    def _read(self) -> tuple[ChampionState, bool]:
        """The champion with the last entry of the log, and whether the alias is settled.

        Until a process has moved it for the last entry the log decides, and so it does if one that
        was slower may have moved it back. Another alias that differs was moved by hand, or its
        version was deleted. No clock takes part in this.
        """
        entries = self._valid_entries()
        last = entries[-1] if entries else None
        champion = self.registry.aliases().get(CHAMPION)
        settled = last is None or (DONE_TAG in last.tags and not _late_marks(entries, champion))
        if last is not None and not settled and self._version_exists(last):
            champion = _version(last)
        return ChampionState(champion, _number(last) if last else 0), settled

    def _version_exists(self, entry: ModelVersion) -> bool:
        """Whether the version of an entry still exists, and is not another one of its number."""
        try:
            version = self.registry.get(_version(entry))
            return version.source == entry.source and _is_of(entry, self.registry.identity())
        except MlflowException as error:
            if error.error_code != MISSING:
                raise
            return False

    def _append(self, version: int, action: str, reason: str, seen: ChampionState) -> int:
        """Write an entry, in one transaction; its number is its place in the order."""
        client, registry, reason = self.registry.client, self.registry, redact(reason)
        if not seen.entry:
            self._create_log()
        model, model_id, claim = registry.get(version), registry.model_id(version), uuid.uuid4().hex
        tags = {
            ENTRY_VERSION_TAG: str(version),
            FOLLOWS_TAG: str(seen.entry),
            ACTION_TAG: action,
            ENTRY_REASON_TAG: reason,
            ENTRY_USER_TAG: user(),
            ENTRY_SECONDS_TAG: repr(time.time()),
            CLAIM_TAG: claim,
        }
        if identity := registry.identity():
            tags[OF_MODEL_TAG] = identity
        if seen.champion is not None:
            tags[PREVIOUS_TAG] = str(seen.champion)
        tries = itertools.count()

        def append_once() -> int:
            for entry in search_versions(client, self.log.name) if next(tries) else []:
                if entry.tags.get(CLAIM_TAG) == claim:  # written before, but the answer was lost
                    return _number(entry)
            made = client.create_model_version(
                self.log.name,
                str(model.source),
                model.run_id,
                model_id=model_id,
                description=f"version {version} {action}: {reason}",
                tags=tags,
            )
            return _number(made)

        return client.retry(CONFLICTS.call, append_once)

    def _valid_entries(self) -> list[ModelVersion]:
        """The entries that are valid: each follows the one before it, which may be deleted by now:
        an entry follows none but a valid one."""
        found = search_versions(self.registry.client, self.log.name)
        entries, last = {_number(entry): entry for entry in found}, 0
        valid: list[ModelVersion] = []
        for number in sorted({*entries, *filter(None, map(_follows, found))}):
            if number not in entries:
                last = number
            elif _follows(entries[number]) == last:
                valid.append(entries[number])
                last = number
        return valid

    def _what_happened(self, seen: ChampionState) -> str:
        since = [promotion for promotion in self.promotions() if promotion.number > seen.entry]
        how = "by hand"
        if since:
            how = f"version {since[-1].version} was {since[-1].action} by {since[-1].user}"
        return f"{self.registry.name}: the champion has moved meanwhile: {how}"


def _is_of(entry: ModelVersion, identity: str) -> bool:
    """Whether an entry is about the registered model of an identity, as far as that has one: not
    about a deleted one of its name."""
    return identity in ("", entry.tags.get(OF_MODEL_TAG, ""))


def _moves(entry: ModelVersion) -> list[str]:
    """The marks of processes that move the alias after an entry, or were killed while they did."""
    return [tag for tag in entry.tags if tag.startswith(MOVING_TAG.format(""))]


def _late_marks(
    entries: list[ModelVersion], champion: int | None
) -> list[tuple[ModelVersion, str]]:
    """The marks of processes that may have moved the alias to the version that it names, after it
    had been moved for the last entry: those of earlier entries about that version. Each of these
    processes moves it once for an entry; whether one that was killed elsewhere had, is not known.
    """
    done = bool(entries) and DONE_TAG in entries[-1].tags
    marks = ((entry, tag) for entry in entries[:-1] for tag in _moves(entry))
    return [(entry, tag) for entry, tag in marks if done and _version(entry) == champion]


def _follows(entry: ModelVersion) -> int | None:
    """The number of the entry that one follows, 0 for none; None if the tag was edited."""
    text = entry.tags.get(FOLLOWS_TAG, "")
    number = int(text) if re.fullmatch("[0-9]{1,9}", text) else None
    return number if number is not None and number < _number(entry) else None


def _number(entry: ModelVersion) -> int:
    return int(entry.version)


def _version(entry: ModelVersion) -> int:
    """The version that an entry is about. Raises EditedError."""
    return read_tag(entry, ENTRY_VERSION_TAG, int)
