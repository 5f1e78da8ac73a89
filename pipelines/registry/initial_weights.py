"""The weights that `train.start_from` names, copied into storage and checked against the model.

Used before the first stage of a command runs.
"""

import json
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open

from dca import ModelConfig, registry
from pipelines.compat.mlflow import MODEL_FILE
from pipelines.config.yaml_text import flatten
from pipelines.console.errors import ConfigError, DamagedError, PipelineError, Problem
from pipelines.console.text import quote_value
from pipelines.registry.package import fetch_model, local_folder
from pipelines.registry.resolve import resolve_model
from pipelines.storage.digests import DIGESTS_FILE, cached_sha256, parse_digests
from pipelines.storage.files import file_at, move_into_place, put_file, remove
from pipelines.storage.location import Storage
from pipelines.storage.private import make_private
from pipelines.storage.remote import Folder, RemoteDirectory
from pipelines.storage.scratch import scratch_folder
from pipelines.tracking.client import connect_existing
from pipelines.tracking.models import ModelStore, verify_model_folder
from pipelines.tracking.schema import PACKAGE_FOLDER
from pipelines.training.config import with_present_names
from pipelines.training.initial_weights import DESCRIPTION, WEIGHTS, start_name

KEY = "train.start_from"
SHAPE = (
    *("architecture", "dim", "depth", "heads", "ff_mult", "vocab"),
    *("attention_windows", "tied_embeddings"),
    *("kv_heads", "qk_norm", "activation", "logit_softcap"),
)


def resolve_initial_weights(
    source: str,
    model: ModelConfig,
    storage: Folder,
    *,
    registered: str,
    searched: Collection[str] = (),
    write: bool = True,
) -> str:
    """A copy in storage of the model that `train.start_from` names, named by its weights' digest.

    Resumed and cached work then refers to these weights, wherever they came from. An alias is read
    anew by every command; `registered` is the model whose versions a bare number means. Raises
    ConfigError if there is no such model, or if it does not fit `model` with any of the `searched`
    keys changed.
    """
    with scratch_folder() as scratch:
        folder = _folder(source, registered, scratch)
        weights = _find(source, folder)
        _require_intact(source, weights)
        _check(model, source, weights, searched)
        target = storage / "starts" / start_name(weights)
        if write and not _is_copied(weights, target):
            _copy(weights.parent, target)
    return str(target)


def _is_copied(weights: Path, target: Folder) -> bool:
    """Whether a folder in storage has these weights; a damaged copy is removed."""
    file = file_at(target / WEIGHTS)
    if file is None or weights.parent == target:
        return file is not None
    digest = cached_sha256(weights)
    if isinstance(file, Path):
        intact = cached_sha256(file) == digest
    else:  # a node compares both: the digest beside it, and the content with that
        intact = file.sha256 == digest and file.is_intact()
    if intact:
        return True
    remove(target)
    return False


def _folder(source: str, registered: str, scratch: Path) -> Path:
    shared = Storage.of(source, key=KEY).folder if "://" in source else None
    try:
        if isinstance(shared, RemoteDirectory):
            with suppress(FileNotFoundError):  # its absence is reported by the caller
                shared.get(scratch, DESCRIPTION, WEIGHTS, DIGESTS_FILE)  # which few have
            return scratch
        if found := local_folder(source):
            return found
        client = connect_existing()
        model_id, _ = resolve_model(client, source, name=registered)
        return fetch_model(ModelStore(client), model_id, scratch)
    except ConfigError as error:
        raise ConfigError(*(problem.at(KEY) for problem in error.problems)) from None
    except PipelineError as error:
        raise _problem(str(error)) from None


def _find(source: str, folder: Path) -> Path:
    """The weights of the model in a folder itself. None below it is looked for: it might be any."""
    for inside in (folder, folder / PACKAGE_FOLDER):
        if all((inside / name).is_file() for name in (WEIGHTS, DESCRIPTION)):
            return inside / WEIGHTS
    raise _problem(
        f"{source}: expected a models:/ URI, or the folder of a packaged model, with its "
        f"{MODEL_FILE}, or of its {WEIGHTS} and {DESCRIPTION}"
    )


def _require_intact(source: str, weights: Path) -> None:
    """Refuse weights of a package, or of the inner folder of one, that its list of digests does not
    have: their copy would be named by the digest of what they are now. Others have no list."""
    folder = weights.parent
    package = folder.parents[1] if folder.match(PACKAGE_FOLDER) else folder
    digests = folder / DIGESTS_FILE
    try:
        if (package / MODEL_FILE).is_file():
            verify_model_folder(package, source)
        elif digests.is_file():
            listed = parse_digests(digests.read_text(encoding="utf-8"))
            for name in (WEIGHTS, DESCRIPTION):
                if listed.get(f"{PACKAGE_FOLDER}/{name}") != cached_sha256(folder / name):
                    raise ValueError(f"{source}: {name} was altered after it was packaged")
    except (DamagedError, OSError, ValueError) as error:
        raise _problem(str(error)) from None


def _check(model: ModelConfig, source: str, weights: Path, searched: Collection[str]) -> None:
    """Refuse weights that do not fit the model, or some model of the search."""
    try:
        stored = json.loads(weights.with_name(DESCRIPTION).read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError(f"{DESCRIPTION}: expected a JSON object")
        stored = with_present_names(stored)
        given = TypeAdapter(ModelConfig).validate_json(json.dumps(stored["model"]))
        _require_shapes(given, weights)
    except (KeyError, OSError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise _problem(f"{source}: expected a model of this project: {reason}") from None
    values, here = dict(flatten(asdict(given))), dict(flatten(asdict(model)))
    for field in (*SHAPE, *_of_kind(given, values)):
        key, value = f"model.{field}", values[field]
        if key in searched:
            message = f"not with train.start_from={source}, whose {key} is {quote_value(value)}"
            raise ConfigError(Problem(message, f"search.space.{key}"))
        if here[field] != value:
            given_here = quote_value(here[field])
            message = f"expected {quote_value(value)}, as train.start_from={source} has it"
            raise ConfigError(Problem(f"{message}, got {given_here}", key))


def _of_kind(given: ModelConfig, fields: Collection[str]) -> list[str]:
    """The fields of its residual kind; none of a `standard` model, which can start any kind."""
    if given.residual == "standard":
        return []
    section = registry.residual.section(given.residual)
    return ["residual", *(name for name in fields if name.startswith(f"{section}."))]


def _require_shapes(given: ModelConfig, weights: Path) -> None:
    """Raise ValueError unless weights have the shapes of a model; no memory is taken for either."""
    with safe_open(weights, "pt") as file:
        names = file.keys()
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    if given.depth > len(shapes):
        message = f"expected at most {len(shapes)}, the tensors of {weights.name}"
        raise ValueError(f"model.depth: {message}, got {given.depth}")
    for residual in (given.residual, "standard"):  # weights of the latter fit any kind
        tensors = replace(given, residual=residual).meta_model().state_dict()
        expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if shapes == expected:
            return
    own = given.meta_model().state_dict()
    other = next(
        name
        for name in sorted({*own, *shapes})
        if name not in own or shapes.get(name) != tuple(own[name].shape)
    )
    raise ValueError(f"{weights.name}: {other} has another shape than in {DESCRIPTION}")


def _problem(message: str) -> ConfigError:
    return ConfigError(Problem(message, KEY))


def _copy(folder: Path, target: Folder) -> None:
    """Copy all or nothing: one that was cut short never has the target's name, or has no digest."""
    if not isinstance(target, Path):
        for name in (DESCRIPTION, WEIGHTS):
            put_file(folder / name, target / name)
        return
    make_private(target.parent)
    with scratch_folder(target.parent) as scratch:
        unfinished = scratch / target.name
        unfinished.mkdir()
        for name in (WEIGHTS, DESCRIPTION):
            shutil.copy(folder / name, unfinished)
        try:
            move_into_place(unfinished, target)
        except OSError:
            if not target.exists():  # else another process was faster, with the same bytes
                raise
