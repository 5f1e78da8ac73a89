"""A trained model as files that prove themselves: packaged, logged, fetched and loaded again."""

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipelines.config.yaml_text import parse
from pipelines.console.errors import ConfigError, DamagedError
from pipelines.console.text import one_line
from pipelines.registry import packaged_model
from pipelines.registry.packaged_model import SUMS, uncached, verify
from pipelines.storage.digests import format_digests, sha256_of
from pipelines.tracking.models import download_model, load_pyfunc, log_model
from pipelines.tracking.provenance import provenance

ROOT = Path(__file__).parents[2]
FILES = Path("artifacts") / "model"
"""In a packaged model: weights, configuration, lineage and digests."""
CONFIG, LINEAGE = str(FILES / "config.json"), str(FILES / "lineage.json")
REQUIREMENTS = [
    f"{name}=={version(name)}"
    for name in ("torch", "safetensors", "einops", "numpy", "pandas", "mlflow")
]


def log_package(
    run_id: str,
    config: Mapping[str, Any],
    params: Mapping[str, Any],
    weights: dict[str, Tensor],
    corpus: Mapping[str, Any],
) -> str:
    """Log weights with all that is needed to run, explain and train them again.

    Returns the models:/ URI; once, however often called for a run.
    """
    with tempfile.TemporaryDirectory() as scratch:
        model, sources = Path(scratch) / "model", Path(scratch) / "dca"
        model.mkdir()
        save_file(weights, model / "model.safetensors")
        lineage = {
            "run": run_id,
            "weights_sha256": sha256_of(model / "model.safetensors"),
            "corpus": {key: corpus[key] for key in ("name", "fingerprint")},
            "provenance": provenance(),
            "hardware": hardware(),
        }
        (model / "config.json").write_text(json.dumps(config, indent=1))
        (model / "lineage.json").write_text(json.dumps(lineage, indent=1))
        shutil.copytree(ROOT / "dca", sources, ignore=shutil.ignore_patterns("__pycache__"))
        code = Path(packaged_model.__file__)
        places = {path: Path("code/dca") / path.relative_to(sources) for path in _files(sources)}
        places |= {path: FILES / path.name for path in _files(model)}
        places[code] = Path(code.name)
        (model / SUMS).write_text(
            format_digests({place.as_posix(): path for path, place in places.items()})
        )
        return log_model(
            run_id,
            code=code,
            code_paths=[sources],
            artifacts={"model": model},
            signature=packaged_model.signature(),
            requirements=REQUIREMENTS,
            params=params,
            example=packaged_model.example(),
            digest=sha256_of(model / SUMS),
        )


def hardware() -> dict[str, Any]:
    """What the numbers of a run were computed on."""
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


def fetch_model(model_id: str, folder: Path) -> Path:
    """Copy a logged model into a folder and check it; where it lies.

    Raises PipelineError if it is gone, DamagedError if it is not what was logged.
    """
    folder.mkdir(exist_ok=True)
    copy, expected = download_model(model_id, folder)
    _check(copy, f"models:/{model_id}")
    if expected is not None and sha256_of(copy / FILES / SUMS) != expected:
        raise DamagedError(f"models:/{model_id}: its {SUMS} is not the one that was logged")
    return copy


def load_model(folder: Path) -> Any:
    """The packaged model in a folder, checked before any of its code runs.

    Raises ConfigError if none is there, DamagedError if it is not as it was packaged.
    """
    if not (folder / "MLmodel").is_file():
        raise ConfigError(f"{folder}: expected a packaged model: there is no MLmodel in it")
    _check(folder, str(folder))
    with uncached():
        return load_pyfunc(folder)


def local_folder(text: str) -> Path | None:
    """The folder that a text names; None if it can only name a model of the registry.

    Raises ConfigError for a path that is no folder.
    """
    if os.path.isdir(text):  # noqa: PTH112  which takes names of any length
        return Path(text)
    if text.startswith((".", "/", "~")):
        raise ConfigError(f"{one_line(text)}: no such folder")
    return None


def _check(folder: Path, name: str) -> None:
    """What MLflow reads of a model is ours, and as it was."""
    try:
        verify(folder)
    except ValueError as error:
        raise DamagedError(f"{name}: {error}") from None
    try:
        how = parse((folder / "MLmodel").read_text(), source="MLmodel")["flavors"][
            "python_function"
        ]
        found = how["loader_module"], Path(how["model_code_path"]).name, how["code"]
    except (ConfigError, OSError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DamagedError(f"{name}: MLmodel was altered: {error!r}") from None
    if found != ("mlflow.pyfunc.loaders.code_model", Path(packaged_model.__file__).name, "code"):
        raise DamagedError(f"{name}: MLmodel was altered: it loads {found}")
