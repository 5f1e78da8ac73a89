"""Where a training begins, if not with random weights: at a model trained before."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from dca import ModelConfig, build_model
from dca.model import load_weights
from pipelines.runtime.config import Config
from pipelines.runtime.dag import storage_path
from pipelines.runtime.errors import ConfigError, PipelineError
from pipelines.runtime.package import fetch, local_folder
from pipelines.runtime.registry import resolve
from pipelines.runtime.storage import Folder, Shared, Storage, borrowed, file_at, put_file
from pipelines.runtime.tracking import connect_existing

WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"
SHAPE = (
    *("architecture", "dim", "depth", "heads", "ff_mult", "vocab"),
    *("attention_windows", "tied_embeddings"),
)
MIXING = ("residual", "last_k", "grn_norm", "hyper_streams")
"""What must agree besides, unless the model to start from is `standard`."""


def pin(config: Config, *, searched: Collection[str] = (), write: bool = True) -> Config:
    """Point `train.start_from` to a copy in storage, named after the weights' digest.

    Resumed and remembered work then means these weights, wherever they came from. An alias is read
    anew by every command: a version says the same for ever. Raises ConfigError if there is no such
    model, or if it does not fit `config.model` with any of the `searched` keys changed.
    """
    source = config.train.start_from
    if source is None:
        return config
    with tempfile.TemporaryDirectory() as scratch:
        folder = _folder(source, config, Path(scratch))
        weights = _find(source, folder)
        _check(config, source, weights, searched)
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:32]
        target = storage_path(config) / "starts" / digest
        if write and file_at(target / WEIGHTS) is None:
            _copy(weights.parent, target)
    return config.replace({"train.start_from": str(target)})


def read_start(folder: str) -> dict[str, Tensor]:
    """The weights of a pinned start. Raises PipelineError if they are gone."""
    file = file_at(Storage.of(folder).folder / WEIGHTS)
    if file is None:
        raise PipelineError(f"train.start_from: {folder}: is gone; run the same command again")
    with borrowed(file) as path:
        return load_file(path)


def _folder(source: str, config: Config, scratch: Path) -> Path:
    try:
        shared = Storage.of(source).folder if "://" in source else None
        if isinstance(shared, Shared):
            with suppress(FileNotFoundError):  # it is missed where it is looked for
                shared.get(scratch, DESCRIPTION, WEIGHTS)
            return scratch
        if found := local_folder(source):
            return found
        model_id, _ = resolve(connect_existing(), source, name=config.promote.model)
        return fetch(model_id, scratch)
    except (ConfigError, PipelineError) as error:
        raise ConfigError(f"train.start_from: {error}") from None


def _find(source: str, folder: Path) -> Path:
    found = sorted(folder.rglob(WEIGHTS))
    if len(found) != 1 or not found[0].with_name(DESCRIPTION).is_file():
        raise ConfigError(
            f"train.start_from: {source}: expected a models:/ URI, or a folder with one {WEIGHTS} "
            f"and its {DESCRIPTION}"
        )
    return found[0]


def _check(config: Config, source: str, weights: Path, searched: Collection[str]) -> None:
    """Refuse weights that do not fit the model, or some model of the search."""
    try:
        given = ModelConfig(**json.loads(weights.with_name(DESCRIPTION).read_text())["model"])
        with safe_open(weights, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        load_weights(build_model(given), tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"train.start_from: {source}: expected a model of this project: {reason}"
        ) from None
    for field in SHAPE if given.residual == "standard" else (*SHAPE, *MIXING):
        key, value = f"model.{field}", getattr(given, field)
        if key in searched:
            raise ConfigError(
                f"search.space.{key}: not with train.start_from={source}, "
                f"whose {key} is {_show(value)}"
            )
        if config.get(key) != value:
            raise ConfigError(
                f"{key}: expected {_show(value)}, as train.start_from={source} has it, "
                f"got {_show(config.get(key))}"
            )


def _show(value: object) -> str:
    return json.dumps(value)


def _copy(folder: Path, target: Folder) -> None:
    """All or nothing: a copy that was cut short never bears the target's name, or has no digest."""
    if not isinstance(target, Path):
        for name in (DESCRIPTION, WEIGHTS):
            put_file(folder / name, target / name)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        unfinished = Path(scratch) / target.name
        unfinished.mkdir()
        for name in (WEIGHTS, DESCRIPTION):
            shutil.copy(folder / name, unfinished)
        try:
            unfinished.rename(target)
        except OSError:
            if not target.exists():  # else another process was faster, with the same bytes
                raise
