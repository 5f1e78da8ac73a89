"""Logged models of the tracking store: their files, and the runs that logged them.

Used by the registry and by the stages that read or write files of a model.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature

from pipelines.compat.mlflow import MISSING, MODEL_FILE, REGISTERED_FILE
from pipelines.compat.mlflow_artifacts import gone
from pipelines.compat.mlflow_errors import is_write_conflict
from pipelines.config.yaml_text import flatten
from pipelines.console.errors import (
    ConfigError,
    DamagedError,
    GoneError,
    Problem,
    RefusedError,
    StorageError,
)
from pipelines.console.secrets import redact
from pipelines.console.text import counted, one_line, reason_of
from pipelines.storage.digests import (
    CACHES,
    DIGESTS_FILE,
    format_digests,
    parse_digests,
    plain_files,
    sha256_of,
    verify_tree,
)
from pipelines.storage.scratch import scratch_folder
from pipelines.tracking.client import RetryingClient
from pipelines.tracking.encoding import encode_param
from pipelines.tracking.schema import (
    ARTIFACT_TAG,
    LINEAGE_FILE,
    PACKAGE_FOLDER,
    SCHEMA_TAG,
    SCHEMA_VERSION,
    SHA256_TAG,
    SIZE_TAG,
    schema_version,
)
from pipelines.tracking.uri import gone_from, local_path

SCHEME = "models:/"
DIGESTS = f"{PACKAGE_FOLDER}/{DIGESTS_FILE}"
"""The list, among a model's files."""
UNLISTED = re.compile(f"{re.escape(DIGESTS)}|{REGISTERED_FILE}")
"""Files of a model that its list does not have: itself, and MLflow's note of a version's name."""
UNLISTED_EARLIER = re.compile(
    rf"{UNLISTED.pattern}|{MODEL_FILE}|(requirements\.txt|(conda|python_env)\.yaml)"
    r"|(serving_)?input_example\.json|(scores|gate|mixing)/[^/]+\.json"
)
"""The same of a package from before MLflow's files were listed."""
MAX_UNLISTED_BYTES = 1 << 20
"""Of the files of a model that are not in its list."""


def model_uri(model_id: str) -> str:
    """The URI of a logged model, as MLflow's own commands take it."""
    return f"{SCHEME}{model_id}"


def model_id_of(uri: str) -> str:
    """The id in the URI of a logged model."""
    return uri.removeprefix(SCHEME)


@dataclass(frozen=True)
class ModelStore:
    """The logged models of one store."""

    client: RetryingClient

    def log(
        self,
        run_id: str,
        *,
        code: Path,
        code_paths: list[Path],
        artifacts: Mapping[str, Path],
        signature: ModelSignature,
        requirements: list[str],
        params: Mapping[str, Any],
        example: Any,
        tags: Mapping[str, str],
    ) -> str:
        """Log a pyfunc model from code under a run; idempotent; returns its URI.

        The digests of all its files are listed in it, and the digest of that list is a tag.
        """
        described = {key: redact(encode_param(value)) for key, value in flatten(params)}

        def log_once() -> str:
            if found := self.logged_by(run_id):
                return found
            run = self.client.get_run(run_id)
            made = self.client.create_logged_model(
                run.info.experiment_id,
                name="model",
                source_run_id=run_id,
                tags={**tags, SCHEMA_TAG: str(SCHEMA_VERSION)},
                params={**described, **run.data.params},
            )
            model_id = str(made.model_id)
            with scratch_folder() as scratch:
                folder = scratch / "model"
                mlflow.pyfunc.save_model(
                    folder,
                    python_model=str(code),
                    code_paths=[str(path) for path in code_paths],
                    artifacts={name: str(path) for name, path in artifacts.items()},
                    signature=signature,
                    pip_requirements=requirements,
                    input_example=example,
                    mlflow_model=Model(
                        artifact_path=made.artifact_location,
                        model_uuid=model_id,
                        model_id=model_id,
                        run_id=run_id,
                    ),
                )
                self.client.set_logged_model_tags(model_id, _seal(folder))
                self.client.log_model_artifacts(model_id, str(folder))
            self._log_output(run_id, model_id)
            self.client.finalize_logged_model(model_id, LoggedModelStatus.READY)
            return model_id

        return model_uri(self.client.retry(log_once))

    def _log_output(self, run_id: str, model_id: str) -> None:
        try:
            self.client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
        except MlflowException as error:
            if not is_write_conflict(error):  # else a call whose answer was lost has stored it
                raise

    def logged_by(self, run_id: str) -> str | None:
        """The id of the model that a run has logged, if it has."""
        run = self.client.get_run(run_id)
        for output in run.outputs.model_outputs if run.outputs else []:
            try:
                model = self.client.get_logged_model(output.model_id)
            except MlflowException as error:
                if error.error_code != MISSING:
                    raise
                continue  # it was deleted
            if model.status == LoggedModelStatus.READY:
                return str(model.model_id)
        return None

    def of_folder(self, folder: Path) -> str:
        """The id of the logged model that a folder of this machine stands for: one with the model's
        files, or one in which the store keeps those of the run that logged it.

        Raises ConfigError if it is neither; DamagedError if it is not what was logged.
        """
        packaged = (folder / MODEL_FILE).is_file()
        try:
            if packaged:
                with (folder / PACKAGE_FOLDER / LINEAGE_FILE).open(encoding="utf-8") as file:
                    run = str(json.loads(file.read(MAX_UNLISTED_BYTES))["run"])
            else:
                path = Path(os.path.realpath(folder))
                run = (path.parent if path.name == "artifacts" else path).name
            found = self.logged_by(run)
        except (KeyError, MlflowException, OSError, RecursionError, TypeError, ValueError):
            found = None
        if found is None:
            message = (
                "the tracking store does not have the run that made it"
                if packaged
                else f"expected a packaged model, with its {MODEL_FILE}, or the folder of a run "
                "that has logged one"
            )
            raise ConfigError(Problem(message, source=str(folder)))
        if packaged:
            model = self.client.get_logged_model(found)
            size = model.tags.get(SIZE_TAG)
            verify_model_folder(folder, str(folder), self._logged_digest(model), size)
        return found

    def exists(self, uri: str) -> bool:
        """Whether a logged model and its files exist.

        The URI is the model's own, or models:/NAME/VERSION of a version that was made of it.
        """
        name, _, version = uri.removeprefix(SCHEME).partition("/")
        try:
            logged = self.client.get_model_version(name, version).source if version else uri
        except MlflowException:
            return False
        with scratch_folder() as scratch:
            return self._fetch(model_id_of(str(logged)), MODEL_FILE, scratch) is not None

    def download(self, model_id: str, folder: Path) -> Path:
        """Download a logged model into a folder, and check every file of it; returns its path.

        Raises GoneError if it does not exist, DamagedError if it is not what was logged, and
        StorageError if it cannot be read, or copied.
        """
        try:
            model = self.client.get_logged_model(model_id)
            source = local_path(str(model.artifact_location))
            if source is not None and not os.path.lexists(source):
                raise GoneError(f"{model_uri(model_id)}: {gone_from(source)}")
            if source is not None:
                _require_size(source, model.tags.get(SIZE_TAG))
            copy = self.client.download(model.artifact_location, folder)
        except (MlflowException, OSError) as error:
            kind, reason = GoneError if gone(error) else StorageError, gone(error) or str(error)
            raise kind(f"{model_uri(model_id)}: {one_line(reason, limit=200)}") from None
        except ValueError as error:
            raise DamagedError(f"{model_uri(model_id)}: {one_line(error)}") from None
        for cache in copy.rglob(CACHES):
            if cache.is_dir():
                shutil.rmtree(cache)
        verify_model_folder(copy, model_uri(model_id), self._logged_digest(model))
        return copy

    def _logged_digest(self, model: LoggedModel) -> str | None:
        """The digest of a model's list of digests as it was logged.

        None, with a warning, for a model from before it was stored. Raises DamagedError if a later
        one has none.
        """
        digest, uri = model.tags.get(SHA256_TAG), model_uri(model.model_id)
        if digest is None and schema_version(model.tags) > 0:
            raise DamagedError(f"{uri}: the tracking store has no digest of its {DIGESTS_FILE}")
        if digest is None:
            logging.getLogger(__name__).warning(
                "%s: logged before the tracking store had digests: only checked against its own %s",
                *(uri, DIGESTS_FILE),
            )
        return str(digest) if digest else None

    def read_packaged(self, model_id: str, file: str) -> dict[str, Any] | None:
        """A JSON object among the files that were logged with a model; None if it was logged
        without such a file.

        Raises DamagedError if it is not what was logged, GoneError if it was deleted.
        """
        with scratch_folder() as scratch:
            try:
                model = self.client.get_logged_model(model_id)
                copies = [
                    self.client.download(f"{model.artifact_location}/{name}", scratch)
                    for name in (DIGESTS, file)
                ]
            except (MlflowException, OSError):
                self.require_files(model_id, file)
                return None
            digest, uri = self._logged_digest(model), model_uri(model_id)
            try:
                if read_list(copies[0], digest).get(file) != sha256_of(copies[1]):
                    raise ValueError(f"{file} was altered after it was packaged")
                found = json.loads(copies[1].read_text(encoding="utf-8"))
                if not isinstance(found, dict):
                    raise ValueError(f"{file}: expected a JSON object")
                return found
            except (OSError, ValueError) as error:
                raise DamagedError(f"{uri}: {error}") from None

    def require_files(self, model_id: str, file: str = "") -> None:
        """Raise GoneError if a model of this project, its files or this one of them were deleted,
        DamagedError if the list of them was altered."""
        uri = model_uri(model_id)
        try:
            model = self.client.get_logged_model(model_id)
        except MlflowException as error:
            if error.error_code != MISSING:
                raise
            raise GoneError(f"{uri}: it was deleted from the tracking store") from None
        if SHA256_TAG not in model.tags:
            return
        with scratch_folder() as scratch:
            digests = self._fetch(model_id, DIGESTS, scratch)
            if digests is None:
                raise GoneError(f"{uri}: {gone_from(model.artifact_location)}")
            try:
                listed = read_list(digests, model.tags[SHA256_TAG])
            except (OSError, ValueError) as error:
                raise DamagedError(f"{uri}: {error}") from None
        if file in listed:
            raise GoneError(f"{uri}: its {file} is gone")

    def require_whole(self, model_id: str) -> None:
        """Raise GoneError if a model of this project or its files were deleted, DamagedError if a
        file is not what was logged."""
        self.require_files(model_id)
        if SHA256_TAG in self.client.get_logged_model(model_id).tags:
            with scratch_folder() as scratch:
                self.download(model_id, scratch)

    def write_json(self, model_id: str, file: str, data: Any) -> None:
        """Store JSON about a logged model: an artifact of the run that logged it, with its digest
        as a tag of the model. Nothing is stored if that run is not there any more, or, with a line,
        if this user may not write there."""
        model, text = self.client.get_logged_model(model_id), json.dumps(data, indent=1)
        if self.client.find_run(model.source_run_id) is None:
            return
        try:
            self.client.require_no_links(model.source_run_id, [file])
            self.client.log_text(model.source_run_id, text, file)
            digest = hashlib.sha256(text.encode()).hexdigest()
            self.client.set_logged_model_tags(model_id, {_added_tag(file): digest})
        except RefusedError as error:
            logging.getLogger(__name__).warning("%s: not stored: %s", file, error)

    def read_json(self, model_id: str, file: str) -> Any:
        """What `write_json` has stored; None if there is none, or it is not what was written."""
        with scratch_folder() as scratch:
            try:
                model = self.client.get_logged_model(model_id)
                digest = model.tags.get(_added_tag(file))
                if digest is None:
                    return None
                copy = self.client.download_artifacts(model.source_run_id, file, scratch)
                data = copy.read_bytes()
            except (MlflowException, OSError):
                return None
        return json.loads(data) if hashlib.sha256(data).hexdigest() == digest else None

    def _fetch(self, model_id: str, file: str, folder: Path) -> Path | None:
        """A copy of one file of a logged model; None if the file, or the model, is not there."""
        try:
            location = self.client.get_logged_model(model_id).artifact_location
            return self.client.download(f"{location}/{file}", folder)
        except (MlflowException, OSError):
            return None


def _require_size(folder: Path, logged: str | None) -> None:
    """Raise ValueError if the files of a folder have more bytes than were logged: one with holes,
    which takes no room, would fill the disk as it is copied, and be read for hours; or if there is
    a link, of which a copy has what it points to. Earlier models have no size."""
    size = _size(folder / name for name in plain_files(folder))
    if logged is not None and size > int(logged) + MAX_UNLISTED_BYTES:
        raise ValueError(f"its files have {counted(size, 'byte')}, {int(logged):,} were logged")


def _seal(folder: Path) -> dict[str, str]:
    """Write the list of digests into a package; returns the tags by which it is verified."""
    for cache in folder.rglob(CACHES):
        shutil.rmtree(cache)
    files = {name: folder / name for name in plain_files(folder)}
    (folder / DIGESTS).write_text(format_digests(files), "utf-8")
    return {SHA256_TAG: sha256_of(folder / DIGESTS), SIZE_TAG: str(_size(files.values()))}


def _size(files: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def verify_model_folder(
    folder: Path, name: str, logged: str | None = None, size: str | None = None
) -> None:
    """Raise DamagedError unless every file of a packaged model is in its list, and unaltered.

    Lists of earlier packages have not MLflow's own files: these may be there, as may what was
    stored later; none is read. `name` is for errors; `logged` and `size` are `_seal`'s, if known.
    """
    try:
        _require_size(folder, size)
        listed = read_list(folder / DIGESTS, logged)
        others = UNLISTED if MODEL_FILE in listed else UNLISTED_EARLIER
        verify_tree(folder, listed, lambda file: others.fullmatch(file) is not None)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise DamagedError(f"{name}: {reason_of(error, with_file=True)}") from None
    except OSError as error:  # of a full table of open files, or of a disk
        raise StorageError(f"{name}: {reason_of(error, with_file=True)}") from None


def read_list(path: Path, logged: str | None) -> dict[str, str]:
    """The digests in a package's list. Raises ValueError if it is not the one that was logged."""
    if not path.is_file():
        raise ValueError(f"no {DIGESTS_FILE}: not a model of this project, or one from before it")
    if logged is not None and sha256_of(path) != logged:
        raise ValueError(f"its {DIGESTS_FILE} is not the one that was logged")
    return parse_digests(path.read_text(encoding="utf-8"))


def _added_tag(file: str) -> str:
    """The tag of a logged model with the digest of what was stored about it later."""
    return ARTIFACT_TAG.format(re.sub(r"[^\w.\-/]", "_", file))
