"""Checksummed model packages: packaging, logging, fetching, checking and loading.

Used by the stages that train, by the gate and by the commands that load a model.
"""

import importlib
import json
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.pyfunc import PythonModelContext

from pipelines.compat.mlflow import MLFLOW_PREFIX, MODEL_FILE, SOURCES
from pipelines.console.errors import ConfigError, DamagedError, PipelineError, Problem, StorageError
from pipelines.console.text import first_line
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.registry import packaged_model
from pipelines.registry.packaged_model import without_bytecode_cache
from pipelines.registry.results import Fitted
from pipelines.storage.digests import plain_files, sha256_of
from pipelines.storage.scratch import scratch_folder
from pipelines.tracking.models import ModelStore, model_id_of, verify_model_folder
from pipelines.tracking.schema import LINEAGE_FILE, PACKAGE_FOLDER
from pipelines.tracking.store import Store
from pipelines.training.initial_weights import DESCRIPTION, WEIGHTS

if TYPE_CHECKING:  # imported by the functions that need it
    from torch import Tensor

FILES = Path(PACKAGE_FOLDER)
CONFIG, LINEAGE = str(FILES / DESCRIPTION), str(FILES / LINEAGE_FILE)
CODE = Path(packaged_model.__file__).name
"""The file in a package that is executed as it is loaded."""
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
    sources: Mapping[str, bytes],
) -> str:
    """Package weights with configuration, lineage and code, and log the package under a run.

    Idempotent for a run. Raises StorageError if there is no room for it.

    Args:
        store: Where the run is.
        run_id: The run that trained.
        config: The configuration, as it is packaged.
        params: Its values, as they are shown.
        weights: The tensors of the model.
        corpus: What it was trained on.
        sources: The project's sources with which it was trained, by path, of which those of `dca`
            are packaged.

    Returns:
        The models:/ URI.

    """
    with scratch_folder() as scratch:
        model = scratch / "model"
        model.mkdir()
        _save(weights, model / WEIGHTS)
        lineage = {
            "run": run_id,
            "weights_sha256": sha256_of(model / WEIGHTS),
            "corpus": {"name": corpus.name, "fingerprint": corpus.fingerprint},
            "provenance": store.run_tags,
            "hardware": hardware(),
        }
        (model / DESCRIPTION).write_text(json.dumps(config, indent=1))
        (model / LINEAGE_FILE).write_text(json.dumps(lineage, indent=1))
        for name, source in sources.items():
            if name.startswith("dca/"):
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                (scratch / name).write_bytes(source)
        return store.models.log(
            run_id,
            code=Path(packaged_model.__file__),
            code_paths=[scratch / "dca"],
            artifacts={"model": model},
            signature=packaged_model.signature(),
            requirements=REQUIREMENTS,
            params=params,
            example=packaged_model.example(),
            tags={k: v for k, v in store.run_tags.items() if k.startswith(MLFLOW_PREFIX)},
        )


def _save(weights: "dict[str, Tensor]", path: Path) -> None:
    """Raises StorageError: of a full disk, too, safetensors has an error of its own."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(weights, path)
    except SafetensorError as error:
        raise StorageError(f"{path}: cannot be written: {first_line(error)}") from error


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
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


def fetch_model(models: ModelStore, model_id: str, folder: Path) -> Path:
    """Download a logged model into a folder and verify it; returns its path.

    Raises GoneError if it does not exist, DamagedError if it is not what was logged, StorageError
    if it cannot be read, or copied.
    """
    folder.mkdir(exist_ok=True)
    return models.download(model_id, folder)


def verify_model(models: ModelStore, uri: str) -> None:
    """Raise GoneError if a logged model does not exist, DamagedError if it is damaged."""
    with scratch_folder() as scratch:
        fetch_model(models, model_id_of(uri), scratch / "model")


def verify_fitted(store: Store, fitted: Fitted) -> None:
    """Raise DamagedError if the model of a training does not exist or is damaged."""
    verify_model(store.models, fitted.model_uri)


def load_model(folder: Path) -> Any:
    """The packaged model in a folder, checked before any of its code runs.

    MLmodel is not read: the code, its sources and the weights have the same places in every
    package. Raises ConfigError if there is none, DamagedError if it is not as it was packaged.
    """
    if not runs_here(folder):
        message = "this process has imported another dca: load the model in a process of its own"
        raise PipelineError(f"{folder}: {message}")
    spec = spec_from_file_location("packaged_model", folder / CODE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    try:
        with without_bytecode_cache(), _sources_first(folder / SOURCES):
            spec.loader.exec_module(module)
            _require_sizes(folder, importlib.import_module("dca").ModelConfig)
            packaged = module.PackagedModel()
            packaged.load_context(PythonModelContext({"model": str(folder / FILES)}, None))
    except (PipelineError, MemoryError):
        raise
    except Exception as error:  # of its own code, whose checksums agree
        reason = f"cannot be loaded: {type(error).__name__}: {first_line(error)}"
        raise DamagedError(f"{folder}: {reason}") from error
    if not all(weight.isfinite().all() for weight in packaged.model.parameters()):
        raise DamagedError(f"{folder}: {WEIGHTS}: has weights that are no finite numbers")
    return packaged


@contextmanager
def _sources_first(folder: Path) -> Iterator[None]:
    """Import from a folder before any other: the package's `dca`, not one that is installed."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def runs_here(folder: Path) -> bool:
    """Whether this process can run the model in a folder: the `dca` that it has imported, if any,
    is the package's.

    Raises ConfigError if there is no package, DamagedError if it is not as it was packaged.
    """
    if not (folder / MODEL_FILE).is_file():
        message = f"expected a packaged model: there is no {MODEL_FILE} in it"
        raise ConfigError(Problem(message, source=str(folder)))
    verify_model_folder(folder, str(folder))
    if "dca" not in sys.modules:
        return True
    imported, packaged = Path(sys.modules["dca"].__file__ or "").parent, folder / SOURCES / "dca"
    return all(
        (imported / name).is_file() and sha256_of(imported / name) == sha256_of(packaged / name)
        for name in plain_files(packaged)
    )


def _require_sizes(folder: Path, kind: Any) -> None:
    """Raise DamagedError if the configuration in a package is one of more weights than it has.

    A model is built, with memory of its size, before its weights are loaded. `kind` is the
    package's ModelConfig; earlier ones cannot count.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / FILES / WEIGHTS, "pt") as file:
            names = file.keys()
            sizes = [math.prod(file.get_slice(name).get_shape()) for name in names]
    except (OSError, RuntimeError, SafetensorError) as error:
        raise DamagedError(f"{folder}: {FILES}/{WEIGHTS}: {first_line(error)}") from None
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model"]
        fits = config["depth"] <= len(sizes)
        if fits and hasattr(kind, "meta_model"):
            fits = kind(**config).parameter_count() <= sum(sizes)
        elif fits:
            fits = config["depth"] * config["ff_mult"] * config["dim"] ** 2 <= sum(sizes)
        if not fits:
            given = ", ".join(f"{key}={config[key]}" for key in ("dim", "depth", "ff_mult"))
            raise ValueError(f"expected a model of {sum(sizes):,} weights, got {given}")
    except (
        AttributeError,
        KeyError,
        RuntimeError,
        TypeError,
        ValueError,
        OSError,
    ) as error:
        reason = f"{type(error).__name__} " * isinstance(error, KeyError) + first_line(error)
        raise DamagedError(f"{folder}: {CONFIG}: {reason}") from None


def local_folder(text: str) -> Path | None:
    """The folder that a text names; None if it can only name a model of the registry.

    What may be a NAME or NAME/VERSION is a folder only if there is a model in it: any folder, as a
    clone of this project, may have a registered model's name. Raises ConfigError for a path that is
    no folder.
    """
    is_path = text.startswith((".", "/", "~"))
    if os.path.isdir(text):  # noqa: PTH112  which takes names of any length
        files = (Path(text, name) for name in (MODEL_FILE, WEIGHTS))
        if is_path or text.count("/") > 1 or any(file.is_file() for file in files):
            return Path(text)
    if is_path:
        raise ConfigError(Problem("no such folder", source=text))
    return None
