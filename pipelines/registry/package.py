"""Checksummed model packages: packaging, logging, fetching, checking and loading.

Used by the stages that train, by the gate and by the commands that load a model.
"""

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.compat.mlflow import (
    CODE_LOADER,
    FLAVOR,
    LOADER_KEY,
    MODEL_CODE_KEY,
    MODEL_FILE,
    SOURCES,
    SOURCES_KEY,
)
from pipelines.config.yaml_text import parse
from pipelines.console.errors import ConfigError, DamagedError, Problem
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.registry import packaged_model
from pipelines.registry.packaged_model import verify, without_bytecode_cache
from pipelines.registry.results import Fitted
from pipelines.storage.digests import DIGESTS_FILE, format_digests, sha256_of
from pipelines.storage.project import ROOT
from pipelines.tracking.models import ModelStore, load_pyfunc, model_id_of, model_uri
from pipelines.tracking.schema import LINEAGE_FILE, PACKAGE_FOLDER
from pipelines.tracking.store import Store
from pipelines.training.initial_weights import DESCRIPTION, WEIGHTS

if TYPE_CHECKING:  # imported by the functions that need it
    from torch import Tensor

FILES = Path(PACKAGE_FOLDER)
CONFIG, LINEAGE = str(FILES / DESCRIPTION), str(FILES / LINEAGE_FILE)
REQUIREMENTS = [
    f"{name}=={version(name)}"
    for name in ("torch", "safetensors", "einops", "numpy", "pandas", "mlflow")
]


def log_package(
    store: Store,
    run_id: str,
    config: Mapping[str, Any],
    params: Mapping[str, Any],
    weights: "dict[str, Tensor]",
    corpus: PreparedCorpus,
) -> str:
    """Package weights with configuration, lineage and code, and log the package under a run.

    Returns the models:/ URI. Idempotent for a run.
    """
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as scratch:
        model, sources = Path(scratch) / "model", Path(scratch) / "dca"
        model.mkdir()
        save_file(weights, model / WEIGHTS)
        lineage = {
            "run": run_id,
            "weights_sha256": sha256_of(model / WEIGHTS),
            "corpus": {"name": corpus.name, "fingerprint": corpus.fingerprint},
            "provenance": store.run_tags,
            "hardware": hardware(),
        }
        (model / DESCRIPTION).write_text(json.dumps(config, indent=1))
        (model / LINEAGE_FILE).write_text(json.dumps(lineage, indent=1))
        shutil.copytree(ROOT / "dca", sources, ignore=shutil.ignore_patterns("__pycache__"))
        code = Path(packaged_model.__file__)
        places = {
            path: Path(SOURCES, "dca") / path.relative_to(sources) for path in _files(sources)
        }
        places |= {path: FILES / path.name for path in _files(model)}
        places[code] = Path(code.name)
        listed = {place.as_posix(): path for path, place in places.items()}
        (model / DIGESTS_FILE).write_text(format_digests(listed))
        return store.models.log(
            run_id,
            code=code,
            code_paths=[sources],
            artifacts={"model": model},
            signature=packaged_model.signature(),
            requirements=REQUIREMENTS,
            params=params,
            example=packaged_model.example(),
            digest=sha256_of(model / DIGESTS_FILE),
        )


def hardware() -> dict[str, Any]:
    """The machine of this process: host, platform, processor, CPUs and GPUs."""
    import torch

    cpus = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "processor": cpus[0].partition(":")[2].strip() if cpus else platform.processor(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def fetch_model(models: ModelStore, model_id: str, folder: Path) -> Path:
    """Download a logged model into a folder and verify it; returns its path.

    Raises PipelineError if it does not exist, DamagedError if it is not what was logged.
    """
    folder.mkdir(exist_ok=True)
    copy, expected = models.download(model_id, folder)
    _check(copy, model_uri(model_id))
    if expected is not None and sha256_of(copy / FILES / DIGESTS_FILE) != expected:
        message = f"its {DIGESTS_FILE} is not the one that was logged"
        raise DamagedError(f"{model_uri(model_id)}: {message}")
    return copy


def verify_model(models: ModelStore, uri: str) -> None:
    """Raise PipelineError if a logged model does not exist, DamagedError if it is damaged."""
    with tempfile.TemporaryDirectory() as scratch:
        fetch_model(models, model_id_of(uri), Path(scratch) / "model")


def verify_fitted(store: Store, fitted: Fitted) -> None:
    """Raise PipelineError if the model of a training does not exist or is damaged."""
    verify_model(store.models, fitted.model_uri)


def load_model(folder: Path) -> Any:
    """The packaged model in a folder, checked before any of its code runs.

    Raises ConfigError if there is none, DamagedError if it is not as it was packaged.
    """
    if not (folder / MODEL_FILE).is_file():
        message = f"expected a packaged model: there is no {MODEL_FILE} in it"
        raise ConfigError(Problem(message, source=str(folder)))
    _check(folder, str(folder))
    with without_bytecode_cache():
        return load_pyfunc(folder)


def local_folder(text: str) -> Path | None:
    """The folder that a text names; None if it can only name a model of the registry.

    Raises ConfigError for a path that is no folder.
    """
    if os.path.isdir(text):  # noqa: PTH112  which takes names of any length
        return Path(text)
    if text.startswith((".", "/", "~")):
        raise ConfigError(Problem("no such folder", source=text))
    return None


def _check(folder: Path, name: str) -> None:
    """Raise DamagedError unless all that MLflow reads of a model is as it was packaged."""
    try:
        verify(folder)
    except ValueError as error:
        raise DamagedError(f"{name}: {error}") from None
    try:
        flavor = parse((folder / MODEL_FILE).read_text(), source=MODEL_FILE)
        for key in FLAVOR:
            flavor = flavor[key]
        found = flavor[LOADER_KEY], Path(flavor[MODEL_CODE_KEY]).name, flavor[SOURCES_KEY]
    except (ConfigError, OSError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DamagedError(f"{name}: {MODEL_FILE} was altered: {error!r}") from None
    if found != (CODE_LOADER, Path(packaged_model.__file__).name, SOURCES):
        raise DamagedError(f"{name}: {MODEL_FILE} was altered: it loads {found}")
