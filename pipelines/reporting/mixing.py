"""The weights that the residual connections of a fit's packaged model have learned, by layer.

For DCA as in Figure 10 of its paper. Used by the page and the notebooks.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipelines.console.errors import PipelineError
from pipelines.console.isolated import run_isolated
from pipelines.console.text import why_ended
from pipelines.data.batches import open_bytes, windows
from pipelines.data.splits import find_splits
from pipelines.engine.results import from_json, json_digest
from pipelines.registry.package import fetch_model
from pipelines.reporting import learned_weights
from pipelines.reporting.results import Results
from pipelines.storage.digests import sha256_of
from pipelines.storage.location import storage_folder
from pipelines.storage.scratch import scratch_folder
from pipelines.tracking.models import model_id_of
from pipelines.tracking.schema import MIXING_FILE

Ids = npt.NDArray[np.int64]
WINDOWS = 16
"""Windows of the validation split over which the input-dependent part is averaged."""


@dataclass(frozen=True)
class Mixing:
    """The weights of a model's residual connections."""

    weights: pd.DataFrame
    """One row per weight: layer (a number, or `learned_weights.OUT`), output (what the layer needs
    it for), entry (what it reads), place (its column: older to newer), b (mean over features),
    spread (standard deviation over features), added (the input-dependent part, averaged over
    validation text; NaN without text). See `readings` in dca/block.py."""
    bytes_read: int = 0
    """Bytes of the validation split that were read."""
    note: str = ""
    """Why there are no weights, or no input-dependent part."""


@dataclass(frozen=True)
class _Row:
    """A row of `Mixing.weights`."""

    layer: str
    output: str
    entry: str
    place: int
    b: float
    spread: float
    added: float


@dataclass(frozen=True)
class _Stored:
    """What is stored about a model: its weights over the validation text."""

    rows: list[_Row]
    bytes_read: int


def read_mixing(results: Results) -> Mixing:
    """The weights that the fit's model learned; the model is run by its own packaged code.

    They are stored for the model: a later report with the same code reads them.
    """
    uri = results.model_uri
    if uri is None:
        return _nothing("no model has been trained to its end yet")
    models, model_id = results.store.models, model_id_of(uri)
    code = json_digest([WINDOWS, sha256_of(Path(learned_weights.__file__))])
    file = MIXING_FILE.format(results.lineage["corpus"]["fingerprint"], code)
    if stored := _stored(models.read_json(model_id, file)):
        return stored
    ids_bt = _validation_ids(results)
    with scratch_folder() as scratch:
        try:
            folder = fetch_model(models, model_id, scratch / "model")
            rows = _weights(folder, ids_bt, scratch)
        except (PipelineError, ValueError) as error:
            return _nothing(f"the model could not be read: {error}")
    if not rows:
        kind = results.config.model.residual
        return _nothing(f"a model of the residual kind {kind} learns no weights of earlier layers")
    table = pd.DataFrame(rows)
    if ids_bt is None:
        return Mixing(table, note="the validation text is no longer in storage: only b is shown")
    models.write_json(model_id, file, {"rows": rows, "bytes_read": ids_bt.size})
    return Mixing(table, ids_bt.size)


def _weights(folder: Path, ids_bt: Ids | None, scratch: Path) -> list[dict[str, Any]]:
    """The rows of a packaged model, read in a process of its own. Raises PipelineError."""
    ids, result = scratch / "ids.npy", scratch / "weights.json"
    if ids_bt is not None:
        np.save(ids, ids_bt)
    child = run_isolated(learned_weights.__name__, [str(folder), str(ids), str(result)])
    if child.returncode or not result.exists():
        raise PipelineError(why_ended(child.stderr, child.returncode))
    rows: list[dict[str, Any]] = json.loads(result.read_text(encoding="utf-8"))
    return rows


def _stored(data: Any) -> Mixing | None:
    """What an earlier report stored; None if it is not of that form, or has no numbers."""
    found = from_json(_Stored, json.dumps(data))
    if found is None or not found.rows or found.bytes_read < 1:
        return None
    numbers = [number for row in found.rows for number in (row.b, row.spread, row.added)]
    if not all(map(math.isfinite, numbers)):
        return None
    return Mixing(pd.DataFrame([asdict(row) for row in found.rows]), found.bytes_read)


def _nothing(note: str) -> Mixing:
    return Mixing(pd.DataFrame(), note=note)


def _validation_ids(results: Results) -> Ids | None:
    """Windows spread over the validation split, [WINDOWS, seq_len]; None if it is gone."""
    seq_len = results.config.train.seq_len
    storage = storage_folder(results.config.storage)
    splits = find_splits(storage, results.lineage["corpus"]["fingerprint"])
    if splits is None:
        return None
    data = open_bytes(splits["validation"])
    starts = np.linspace(0, len(data) - seq_len - 1, WINDOWS).astype(np.int64)
    return windows(data, starts, seq_len)[:, :-1].astype(np.int64)
