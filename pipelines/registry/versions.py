"""The versions of a registered model: created, found, tagged and aliased.

Used by the stages and commands that work with a registered model, and by the log of its champions.
"""

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipelines.compat.mlflow import (
    EXISTS,
    INVALID,
    MISSING,
    MODEL_ID,
    MODEL_VERSIONS_TAG,
    all_pages,
)
from pipelines.compat.mlflow_errors import is_write_conflict
from pipelines.console.errors import ConfigError, Problem, RefusedError
from pipelines.console.retries import RetryPolicy
from pipelines.console.secrets import redact
from pipelines.console.text import nearest, one_line
from pipelines.storage.project import command_line, script
from pipelines.tracking import descriptions
from pipelines.tracking.client import RetryingClient
from pipelines.tracking.models import ModelStore, model_id_of, model_uri
from pipelines.tracking.schema import IDENTITY_TAG, SCHEMA_TAG, SCHEMA_VERSION

LOG_SUFFIX = "-champions"
"""Behind a registered model's name: the name of the log of its champions."""
LATEST = "latest"

CONFLICTS = RetryPolicy(is_write_conflict, pause_seconds=0.05, max_pause_seconds=2, max_attempts=20)
"""For writes to the registry's tables, which MLflow refuses when two writers meet."""


@dataclass(frozen=True)
class Registry:
    """The versions of one registered model."""

    client: RetryingClient
    name: str

    @property
    def models(self) -> ModelStore:
        """The logged models that versions are made of."""
        return ModelStore(self.client)

    def register(
        self, uri: str, run_id: str, tags: Mapping[str, str], description: str = ""
    ) -> int:
        """The version of a logged model, with these tags; created if there is none.

        The `description` in Markdown is that of a new version.
        """
        every = {SCHEMA_TAG: str(SCHEMA_VERSION), **tags}

        def register_once() -> int:
            self.create(descriptions.describe_model(self.name), {IDENTITY_TAG: uuid.uuid4().hex})
            version = self._version_of(uri)
            if version is None:
                version = self._create(uri, run_id, every, description)
            else:
                self.tag(version, every)
            self._link(model_id_of(uri), version)
            return version

        return self.client.retry(CONFLICTS.call, register_once)

    def create(self, description: str, tags: Mapping[str, str] | None = None) -> None:
        """Create the registered model with these tags, unless there is one of the name, as where
        the answer of a call was lost."""
        create = self.client.create_registered_model
        try:
            self.client.retry(CONFLICTS.call, create, self.name, tags, description=description)
        except MlflowException as error:
            if error.error_code != EXISTS:
                raise

    def _create(self, uri: str, run_id: str, tags: Mapping[str, str], description: str) -> int:
        written = {key: redact(str(value)) for key, value in tags.items()}
        made = self.client.create_model_version(
            self.name, uri, run_id, written, model_id=model_id_of(uri), description=description
        )
        return int(made.version)

    def _link(self, model_id: str, version: int) -> None:
        """Show the version on its logged model's page, as MLflow's own way of registering does."""
        tags = self.client.get_logged_model(model_id).tags
        entry = {"name": self.name, "version": str(version)}
        try:
            linked = json.loads(tags.get(MODEL_VERSIONS_TAG, "[]"))
            present = [{**row, "version": str(row["version"])} for row in linked]
        except (KeyError, TypeError, ValueError):  # it was edited; only MLflow's page reads it
            linked, present = [], []
        if entry not in present:
            tags = {MODEL_VERSIONS_TAG: json.dumps([*linked, entry])}
            self.client.set_logged_model_tags(model_id, tags)

    def _version_of(self, uri: str) -> int | None:
        found = (int(v.version) for v in search_versions(self.client, self.name) if v.source == uri)
        return next(found, None)

    def versions(self) -> list[ModelVersion]:
        """Every version, ascending. Raises ConfigError if nothing is registered by the name."""
        _require_name(self.client, self.name)
        return search_versions(self.client, self.name)

    def get(self, version: int) -> ModelVersion:
        """A version, with its tags."""
        return self.client.get_model_version(self.name, str(version))

    def find(self, text: str) -> int:
        """The version that a number, an alias or `latest` means. Raises ConfigError."""
        numbers = [int(version.version) for version in self.versions()]
        aliases = self.aliases()
        if text in map(str, numbers):
            return int(text)
        if text == LATEST and numbers:
            return numbers[-1]
        if text.removeprefix("@") in aliases:
            return aliases[text.removeprefix("@")]
        versions = f"{numbers[0]} to {numbers[-1]}" if numbers else "none"
        message = (
            f"no version or alias {one_line(text)}; versions: {versions}; "
            f"aliases: {', '.join(sorted(aliases)) or 'none'}"
        )
        raise ConfigError(Problem(message, source=self.name))

    def aliases(self) -> dict[str, int]:
        """Versions by alias."""
        found = self.client.get_registered_model(self.name).aliases
        return {alias: int(version) for alias, version in found.items()}

    def identity(self) -> str:
        """What distinguishes it from a deleted one of its name; empty for one made by others."""
        return self.own_tags().get(IDENTITY_TAG, "")

    def own_tags(self) -> dict[str, str]:
        """The tags of the registered model itself; none if there is none of the name."""
        try:
            return dict(self.client.get_registered_model(self.name).tags)
        except RefusedError as error:
            raise RefusedError(f"models:/{self.name} may not be read: {error}") from None
        except MlflowException as error:
            if error.error_code != MISSING:
                raise
            return {}

    def tag_itself(self, tag: str, value: str) -> None:
        """Set a tag of the registered model itself."""
        CONFLICTS.call(self.client.set_registered_model_tag, self.name, tag, value)

    def set_alias(self, alias: str, version: int) -> None:
        """Make an alias name a version."""
        CONFLICTS.call(self.client.set_registered_model_alias, self.name, alias, str(version))

    def tag(self, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        for key, value in tags.items():
            CONFLICTS.call(
                self.client.set_model_version_tag, self.name, str(version), key, redact(str(value))
            )

    def remove_tags(self, version: int, keys: Iterable[str]) -> None:
        """Remove tags of a version, unless it was deleted."""
        for key in keys:
            try:
                CONFLICTS.call(self.client.delete_model_version_tag, self.name, str(version), key)
            except MlflowException as error:
                if error.error_code != MISSING:
                    raise

    def model_id(self, version: int) -> str:
        """Of the logged model that a version is. Raises ConfigError if it is none."""
        source = str(self.get(version).source)
        if not re.fullmatch(model_uri(MODEL_ID), source):
            message = f"expected a model logged by MLflow 3, got {source}"
            raise ConfigError(Problem(message, source=f"{self.name} version {version}"))
        return model_id_of(source)

    def write_json(self, version: int, file: str, data: Any) -> None:
        """Store JSON about a version's model; nothing if the run that logged it is gone."""
        self.models.write_json(self.model_id(version), file, data)

    def read_json(self, version: int, file: str) -> Any:
        """What `write_json` has stored; None if there is none, or it is not what was written."""
        try:
            return self.models.read_json(self.model_id(version), file)
        except ConfigError:
            return None

    def read_packaged(self, version: int, file: str) -> dict[str, Any] | None:
        """A JSON object among the files of a version's model; None if there is none.

        Raises DamagedError if it is not what was logged, GoneError if it was deleted.
        """
        try:
            return self.models.read_packaged(self.model_id(version), file)
        except ConfigError:
            return None


def search_versions(client: RetryingClient, name: str) -> list[ModelVersion]:
    """Every version registered by a name, ascending; none if there is no such name."""
    found = all_pages(client.search_model_versions, f"name = '{name}'")
    return sorted(found, key=lambda version: int(version.version))


def _require_name(client: RetryingClient, name: str) -> None:
    """Raise ConfigError if no model is registered by the name, or one that cannot be searched, or
    it is a log of champions."""
    if name.endswith(LOG_SUFFIX):
        model = name.removesuffix(LOG_SUFFIX)
        message = f"the log of the champions of {model}; expected a registered model"
        raise ConfigError(Problem(message, source=f"models:/{name}", nearest=model))
    try:
        client.get_registered_model(name)
    except (MlflowException, RefusedError) as error:
        kind = "registered model"
        if isinstance(error, RefusedError):  # as a server with grants does if it is not there, too
            kind = f"{kind} that this user may read"
        elif error.error_code not in (MISSING, INVALID):
            raise
        found = [model.name for model in all_pages(client.search_registered_models)]
        names = [name for name in found if not name.endswith(LOG_SUFFIX)]
        registered = ", ".join(names) or f"none yet; {command_line(script('sweep.py'))} makes one"
        message = f"no such {kind}; registered: {registered}"
        source = f"models:/{name}"
        raise ConfigError(Problem(message, source=source, nearest=nearest(name, names))) from None
    if "'" in name:
        message = "expected a name without ', at which MLflow's search for its versions fails"
        raise ConfigError(Problem(message, source=f"models:/{name}"))
