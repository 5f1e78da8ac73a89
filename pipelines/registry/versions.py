"""The model registry: versions, aliases, and who was champion when.

The champion is MLflow's alias `champion`. Why it moved is a log: the versions of a second
registered model, NAME-champions, whose numbers the registry hands out once each, in order. An entry
says which entry it follows. Of two that follow the same one the first counts and the other is void,
for whoever reads the log: so two promoters on two machines cannot both win, no lock is held, and a
process killed anywhere leaves nothing to clean up. The alias is moved after the entry is written;
if that was cut short, whoever comes next moves it.
"""

import itertools
import json
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import tenacity
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import IntegrityError

from pipelines.console.errors import ConfigError, PipelineError
from pipelines.console.text import one_line
from pipelines.tracking import descriptions
from pipelines.tracking.models import read_model_json, write_model_json
from pipelines.tracking.provenance import provenance
from pipelines.tracking.retries import retry_transient

CHAMPION = "champion"
VERSIONS_TAG = "mlflow.modelVersions"
LOG = "-champions"
"""What the log of NAME is called: NAME-champions."""


SETTLING_SECONDS = 10
"""Until then after a promotion, the alias may still be on its way to where the log says."""


class ConcurrentPromotionError(PipelineError):
    """Another process moved the champion between this one's look and its promotion."""


@dataclass(frozen=True)
class Promotion:
    """One move of the champion, as the log has it."""

    number: int
    """Of the entry; entries that came too late leave gaps."""
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


@dataclass(frozen=True)
class ChampionState:
    """Who is champion, and the entry of the log after which that was looked up."""

    champion: int | None
    entry: int


def _collides(error: BaseException) -> bool:
    """Two writers met in MLflow's tables; it can tell neither which one was first."""
    text = str(error)
    return isinstance(error, (MlflowException, IntegrityError)) and any(
        sign in text for sign in ("IntegrityError", "UniqueViolation", "Giving up after")
    )


_again = tenacity.retry(
    retry=tenacity.retry_if_exception(_collides),
    wait=tenacity.wait_random_exponential(multiplier=0.05, max=2),
    stop=tenacity.stop_after_attempt(20),
    reraise=True,
)


@dataclass(frozen=True)
class Registry:
    """The versions of one registered model and its champions."""

    client: MlflowClient
    name: str

    @retry_transient
    @_again
    def register(
        self, uri: str, run_id: str, tags: Mapping[str, str], description: str = ""
    ) -> int:
        """The version of a logged model; made if there is none, its tags completed in any case.

        The `description` in Markdown is that of a new version.
        """
        _make_name(self.client, self.name, descriptions.describe_model(self.name))
        version = self._version_of(uri)
        if version is None:
            model_id = uri.removeprefix("models:/")
            made = self.client.create_model_version(
                self.name, uri, run_id, model_id=model_id, description=description
            )
            version = int(made.version)
        self.tag(version, tags)
        self._link(uri.removeprefix("models:/"), version)
        return version

    def _link(self, model_id: str, version: int) -> None:
        """Show the version on its logged model's page, as MLflow's own way of registering does."""
        known = json.loads(self.client.get_logged_model(model_id).tags.get(VERSIONS_TAG, "[]"))
        entry = {"name": self.name, "version": str(version)}
        if entry not in [{**row, "version": str(row["version"])} for row in known]:
            self.client.set_logged_model_tags(model_id, {VERSIONS_TAG: json.dumps([*known, entry])})

    def _version_of(self, uri: str) -> int | None:
        found = (int(v.version) for v in self._search(self.name) if v.source == uri)
        return next(found, None)

    def versions(self) -> list[ModelVersion]:
        """Every version, ascending. Raises ConfigError if nothing is registered by the name."""
        _require_name(self.client, self.name)
        return self._search(self.name)

    def _search(self, name: str) -> list[ModelVersion]:
        found: list[ModelVersion] = []
        token = None
        while True:
            page = self.client.search_model_versions(f"name = '{name}'", page_token=token)
            found.extend(page)
            token = page.token
            if not token:
                return sorted(found, key=lambda version: int(version.version))

    def get(self, version: int) -> ModelVersion:
        """A version, with its tags."""
        return self.client.get_model_version(self.name, str(version))

    def find(self, text: str) -> int:
        """The version that a number, an alias or `latest` means. Raises ConfigError."""
        numbers = [int(version.version) for version in self.versions()]
        aliases = self.aliases()
        if text in map(str, numbers):
            return int(text)
        if text == "latest" and numbers:
            return numbers[-1]
        if text.removeprefix("@") in aliases:
            return aliases[text.removeprefix("@")]
        known = f"{numbers[0]} to {numbers[-1]}" if numbers else "none"
        raise ConfigError(
            f"{self.name}: no version or alias {one_line(text)}; versions: {known}; "
            f"aliases: {', '.join(sorted(aliases)) or 'none'}"
        )

    def aliases(self) -> dict[str, int]:
        """Versions by alias."""
        found = self.client.get_registered_model(self.name).aliases
        return {alias: int(version) for alias, version in found.items()}

    @_again
    def tag(self, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        for key, value in tags.items():
            self.client.set_model_version_tag(self.name, str(version), key, str(value))

    def untag(self, version: int, keys: Iterable[str]) -> None:
        """Take tags off a version."""
        for key in keys:
            self.client.delete_model_version_tag(self.name, str(version), key)

    @_again
    def point(self, alias: str, version: int) -> None:
        """Make an alias name a version."""
        self.client.set_registered_model_alias(self.name, alias, str(version))

    def model_id(self, version: int) -> str:
        """Of the logged model that a version is. Raises ConfigError if it is none."""
        source = str(self.get(version).source)
        if not re.fullmatch(r"models:/m-\w+", source):
            raise ConfigError(
                f"{self.name} version {version}: expected a model logged by MLflow 3, got {source}"
            )
        return source.removeprefix("models:/")

    def keep(self, version: int, file: str, data: Any) -> None:
        """Store JSON as an artifact of a version's model."""
        write_model_json(self.model_id(version), file, data)

    def read(self, version: int, file: str) -> Any:
        """JSON that is an artifact of a version's model; None if there is none."""
        try:
            return read_model_json(self.model_id(version), file)
        except ConfigError:
            return None

    def standing(self, *, settle: bool = True) -> ChampionState:
        """Who is champion now; unless told not to, a promotion that was cut short is completed."""
        seen, last, alias = self._look()
        if settle and last is not None and ("done" not in last.tags or alias != seen.champion):
            self._settle()
        return seen

    def _look(self) -> tuple[ChampionState, ModelVersion | None, int | None]:
        """Who is champion, the last entry of the log, and what the alias names.

        While the alias may be on its way the log tells; later an alias that differs was moved by
        hand, or its version was deleted.
        """
        last = next(reversed(self._valid()), None)
        alias = champion = self.aliases().get(CHAMPION)
        if last is not None and not _settled(last) and self._exists(last):
            champion = int(last.tags["version"])
        return ChampionState(champion, _number(last) if last else 0), last, alias

    def _exists(self, entry: ModelVersion) -> bool:
        """Whether the version of an entry is still there, and not another one of its number."""
        try:
            return bool(self.get(int(entry.tags["version"])).source == entry.source)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def promotions(self) -> list[Promotion]:
        """Every move of the champion, in order; not of a model of that name that was deleted."""
        sources = {str(version.version): version.source for version in self._search(self.name)}
        entries = self._valid()
        ours = (e for e in entries if sources.get(e.tags["version"], e.source) == e.source)
        return [_promotion(entry) for entry in ours]

    def promote(self, version: int, action: str, reason: str, seen: ChampionState) -> None:
        """Make a version champion, unless the champion moved since `seen`.

        Raises Overtaken if it did, before or meanwhile: then nothing has changed.
        """
        if self._look()[0] != seen:
            raise ConcurrentPromotionError(self._what_happened(seen))
        number = self._append(version, action, reason, seen)
        if number not in map(_number, self._valid()):
            reason = self._what_happened(seen)
            self.client.update_model_version(self.name + LOG, str(number), f"void: {reason}")
            raise ConcurrentPromotionError(reason)
        self._settle()

    def before(self, champion: int | None) -> int | None:
        """The champion to go back to: the last one before, of those that are still there."""
        walk: list[int] = []
        for promotion in self.promotions():
            if promotion.action == "rolled back":
                while walk and walk[-1] != promotion.version:
                    walk.pop()
            elif promotion.previous is not None and promotion.previous not in walk[-1:]:
                walk.append(promotion.previous)  # the alias had been moved by hand
            walk.append(promotion.version)
        there = {int(version.version) for version in self.versions()}
        others = (v for v in reversed(walk) if v in there and v != champion)
        return next(others, None)

    def _append(self, version: int, action: str, reason: str, seen: ChampionState) -> int:
        """Write an entry, in one transaction; its number tells its place in the order."""
        if not seen.entry:
            _make_name(self.client, self.name + LOG, descriptions.describe_champions(self.name))
        model, model_id, claim = self.get(version), self.model_id(version), uuid.uuid4().hex
        previous = {} if seen.champion is None else {"previous": str(seen.champion)}
        tags = {
            "version": str(version),
            "follows": str(seen.entry),
            "action": action,
            "reason": reason,
            "user": provenance()["mlflow.user"],
            "seconds": repr(time.time()),
            "claim": claim,
            **previous,
        }

        tries = itertools.count()

        @retry_transient
        @_again
        def write() -> int:
            for entry in self._search(self.name + LOG) if next(tries) else []:
                if entry.tags.get("claim") == claim:  # its answer was lost
                    return _number(entry)
            made = self.client.create_model_version(
                self.name + LOG,
                str(model.source),
                model.run_id,
                model_id=model_id,
                description=f"version {version} {action}: {reason}",
                tags=tags,
            )
            return _number(made)

        return write()

    def _valid(self) -> list[ModelVersion]:
        """The entries that count: each follows the one before it."""
        valid: list[ModelVersion] = []
        for entry in self._search(self.name + LOG):
            if entry.tags.get("follows") == str(_number(valid[-1]) if valid else 0):
                valid.append(entry)
        return valid

    def _settle(self) -> None:
        """Let the alias name what the last entry says, also while others write entries."""
        while True:
            last = self._valid()[-1]
            if self._exists(last):
                self.point(CHAMPION, int(last.tags["version"]))
            self._mark_done(last)
            if _number(self._valid()[-1]) == _number(last):
                return

    @_again
    def _mark_done(self, entry: ModelVersion) -> None:
        self.client.set_model_version_tag(self.name + LOG, str(entry.version), "done", "true")

    def _what_happened(self, seen: ChampionState) -> str:
        since = [promotion for promotion in self.promotions() if promotion.number > seen.entry]
        how = "by hand"
        if since:
            how = f"version {since[-1].version} was {since[-1].action} by {since[-1].user}"
        return f"{self.name}: the champion has moved meanwhile: {how}"


def _settled(entry: ModelVersion) -> bool:
    """Whether an alias that names another version was moved by hand, and not on its way."""
    age = time.time() - float(entry.tags["seconds"])
    return "done" in entry.tags and age > SETTLING_SECONDS


def _number(entry: ModelVersion) -> int:
    return int(entry.version)


def _promotion(entry: ModelVersion) -> Promotion:
    tags = entry.tags
    return Promotion(
        number=_number(entry),
        version=int(tags["version"]),
        previous=int(tags["previous"]) if "previous" in tags else None,
        action=tags["action"],
        reason=tags["reason"],
        user=tags["user"],
        seconds=float(tags["seconds"]),
    )


@_again
def _make_name(client: MlflowClient, name: str, description: str) -> None:
    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _require_name(client: MlflowClient, name: str) -> None:
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        found = [model.name for model in client.search_registered_models()]
        names = ", ".join(name for name in found if not name.endswith(LOG))
        raise ConfigError(
            f"models:/{one_line(name)}: no such registered model; "
            f"registered: {names or 'none yet; python pipelines/sweep.py makes one'}"
        ) from None
