"""Where a training begins, if not with random weights: at a model trained before."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from pipelines.runtime.config import Config
from pipelines.runtime.errors import ConfigError

WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"
SHAPE = ("dim", "depth", "heads", "ff_mult", "vocab")
"""What weights fit; a `standard` model starts any residual kind, another one its own only."""


def pin(config: Config) -> Config:
    """Copy `train.start_from` into storage, under its content's name, and point to the copy.

    An alias that moves, or a folder that changes, then no longer changes what this configuration
    means. Raises ConfigError if there is no such model or its weights do not fit.
    """
    source = config.train.start_from
    if source is None:
        return config
    with tempfile.TemporaryDirectory() as scratch:
        weights = _find(source, Path(scratch))
        described = weights.with_name(DESCRIPTION)
        _check(config, source, json.loads(described.read_text())["model"])
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:32]
        target = Path(config.storage).absolute() / "starts" / digest
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as unfinished:
                for path in (weights, described):
                    shutil.copy(path, unfinished)
                shutil.copytree(unfinished, target, dirs_exist_ok=True)
    return config.replace({"train.start_from": str(target)})


def read_start(folder: str) -> dict[str, Tensor]:
    """The weights of a pinned start."""
    return load_file(Path(folder) / WEIGHTS)


def _find(source: str, scratch: Path) -> Path:
    folder = Path(source)
    if ":" in source:
        from pipelines.runtime.tracking import connect, download_model, tracking_uri

        connect(tracking_uri())
        folder = download_model(source, scratch)
    found = sorted(folder.rglob(WEIGHTS))
    if not found or not found[0].with_name(DESCRIPTION).is_file():
        raise ConfigError(
            f"train.start_from: {source}: expected a models:/ URI, or a folder with {WEIGHTS} and "
            f"{DESCRIPTION}"
        )
    return found[0]


def _check(config: Config, source: str, given: dict[str, object]) -> None:
    """Refuse weights that do not fit the model, or some value of the search space."""
    fields = [*SHAPE, *(() if given["residual"] == "standard" else ("residual", "last_k"))]
    for field in fields:
        key = f"model.{field}"
        if key in config.search.space:
            raise ConfigError(f"search.space.{key}: {source} has {key}={given[field]}")
        if config.get(key) != given[field]:
            raise ConfigError(
                f"{key}: expected {given[field]!r}, as {source} has it "
                f"(train.start_from), got {config.get(key)!r}"
            )
