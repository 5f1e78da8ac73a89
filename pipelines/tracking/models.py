"""The tracking store: MLflow's experiments, runs, artifacts and logged models.

A run is found by what it is (tags `dca.kind` and `dca.key`), never by its name or by the order of
events, so that a command that was killed finds its own work again. Whoever needs the store while it
is locked or away waits for it; histories are written behind the back of the training.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature

from pipelines.config.yaml_text import flatten
from pipelines.console.errors import PipelineError
from pipelines.tracking.encoding import encode_param
from pipelines.tracking.retries import is_transient, retry_transient
from pipelines.tracking.schema import DIGEST_TAG


@retry_transient
def log_model(
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
    """Log a pyfunc model from code under a run, once; returns its models:/ URI."""
    if found := logged_model(run_id):
        return f"models:/{found}"
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
            tags={DIGEST_TAG: digest},
        )
    return f"models:/{info.model_id}"


@retry_transient
def logged_model(run_id: str) -> str | None:
    """The id of the model that a run has logged, if it has."""
    run = mlflow.get_run(run_id)
    for output in run.outputs.model_outputs if run.outputs else []:
        model = mlflow.get_logged_model(output.model_id)
        if str(model.status) == "READY":
            return str(model.model_id)
    return None


@retry_transient
def model_exists(uri: str) -> bool:
    """Whether a logged model and its files are still there."""
    try:
        mlflow.models.get_model_info(uri)
    except (MlflowException, OSError) as error:
        if is_transient(error):
            raise
        return False
    return True


@retry_transient
def download_model(model_id: str, folder: Path) -> tuple[Path, str | None]:
    """Copy a logged model's files into a folder; where they lie, and the digest told on logging.

    Raises PipelineError if they are gone.
    """
    try:
        digest = mlflow.get_logged_model(model_id).tags.get(DIGEST_TAG)
        uri = f"models:/{model_id}"
        copy = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder))
    except (MlflowException, OSError) as error:
        if is_transient(error):
            raise
        raise PipelineError(f"models:/{model_id}: {str(error).splitlines()[0]}") from None
    return Path(copy), digest


def load_pyfunc(folder: Path) -> Any:
    """The Python object behind the pyfunc model in a folder. Its code is executed."""
    return mlflow.pyfunc.load_model(str(folder)).unwrap_python_model()


@retry_transient
def write_model_json(model_id: str, file: str, data: Any) -> None:
    """Store JSON among the files of a logged model, where whoever downloads it finds it."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=1))
        MlflowClient().log_model_artifacts(model_id, scratch)


@retry_transient
def read_model_json(model_id: str, file: str) -> Any:
    """JSON among the files of a logged model; None if there is none, or a torn one."""
    try:
        location = mlflow.get_logged_model(model_id).artifact_location
        return json.loads(mlflow.artifacts.load_text(f"{location}/{file}"))
    except (MlflowException, OSError, ValueError) as error:
        if is_transient(error):
            raise
        return None
