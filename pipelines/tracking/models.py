"""Logged models of the tracking store: their files, and the runs that logged them.

Used by the registry and by the stages that read or write files of a model.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature

from pipelines.compat.mlflow import MODEL_FILE
from pipelines.config.yaml_text import flatten
from pipelines.console.errors import PipelineError
from pipelines.console.text import first_line
from pipelines.tracking.client import RetryingClient, configure_mlflow
from pipelines.tracking.encoding import encode_param
from pipelines.tracking.schema import SCHEMA_TAG, SCHEMA_VERSION, SHA256_TAG

SCHEME = "models:/"


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
        digest: str,
    ) -> str:
        """Log a pyfunc model from code under a run; idempotent; returns its URI."""

        def log_once() -> str:
            if found := self.logged_by(run_id):
                return found
            configure_mlflow(self.client.uri)
            with mlflow.start_run(run_id=run_id):
                info = mlflow.pyfunc.log_model(
                    name="model",
                    python_model=str(code),
                    code_paths=[str(path) for path in code_paths],
                    artifacts={name: str(path) for name, path in artifacts.items()},
                    signature=signature,
                    pip_requirements=requirements,
                    params={key: encode_param(value) for key, value in flatten(params)},
                    input_example=example,
                    tags={SCHEMA_TAG: str(SCHEMA_VERSION), SHA256_TAG: digest},
                )
            return str(info.model_id)

        return model_uri(self.client.retry(log_once))

    def logged_by(self, run_id: str) -> str | None:
        """The id of the model that a run has logged, if it has."""
        run = self.client.get_run(run_id)
        for output in run.outputs.model_outputs if run.outputs else []:
            model = self.client.get_logged_model(output.model_id)
            if model.status == LoggedModelStatus.READY:
                return str(model.model_id)
        return None

    def exists(self, uri: str) -> bool:
        """Whether a logged model and its files exist.

        The URI is the model's own, or models:/NAME/VERSION of a version that was made of it.
        """
        name, _, version = uri.removeprefix(SCHEME).partition("/")
        try:
            logged = self.client.get_model_version(name, version).source if version else uri
        except MlflowException:
            return False
        with tempfile.TemporaryDirectory() as scratch:
            return self._fetch(model_id_of(str(logged)), MODEL_FILE, Path(scratch)) is not None

    def download(self, model_id: str, folder: Path) -> tuple[Path, str | None]:
        """Download a logged model's files into a folder; returns their path and the logged digest.

        Raises PipelineError if they do not exist.
        """
        try:
            digest = self.client.get_logged_model(model_id).tags.get(SHA256_TAG)
            return self.client.download(model_uri(model_id), folder), digest
        except (MlflowException, OSError) as error:
            raise PipelineError(f"{model_uri(model_id)}: {first_line(error)}") from None

    def write_json(self, model_id: str, file: str, data: Any) -> None:
        """Store JSON among the files of a logged model, where it is downloaded with them."""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(data, indent=1))
            self.client.log_model_artifacts(model_id, scratch)

    def read_json(self, model_id: str, file: str) -> Any:
        """JSON among the files of a logged model; None if there is none, or it is incomplete."""
        with tempfile.TemporaryDirectory() as scratch:
            copy = self._fetch(model_id, file, Path(scratch))
            try:
                return None if copy is None else json.loads(copy.read_text())
            except ValueError:
                return None

    def _fetch(self, model_id: str, file: str, folder: Path) -> Path | None:
        """A copy of one file of a logged model; None if the file, or the model, is not there."""
        try:
            location = self.client.get_logged_model(model_id).artifact_location
            return self.client.download(f"{location}/{file}", folder)
        except (MlflowException, OSError):
            return None


def load_pyfunc(folder: Path) -> Any:
    """The Python object behind the pyfunc model in a folder. Its code is executed.

    MLflow's warnings are never shown; to make them it looks at every installed file for half a
    second.
    """
    return mlflow.pyfunc.load_model(str(folder), suppress_warnings=True).unwrap_python_model()
