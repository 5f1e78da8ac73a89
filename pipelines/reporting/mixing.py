"""The learned mixture weights of a fit's packaged model: each stack entry's weight in each layer.

As in Figure 10 of the DCA paper. Used by the page and the notebooks. Axes: o outputs, n stack
entries.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipelines.console.errors import PipelineError
from pipelines.console.text import one_line
from pipelines.data.batches import open_bytes, windows
from pipelines.data.splits import find_splits
from pipelines.registry.package import fetch_model
from pipelines.reporting import grn_weights
from pipelines.reporting.results import Results
from pipelines.storage.location import storage_folder
from pipelines.tracking.models import model_id_of
from pipelines.tracking.schema import MIXING_FILE

Ids = npt.NDArray[np.int64]
WINDOWS = 16
"""Windows of the validation split over which the input-dependent part is averaged."""


@dataclass(frozen=True)
class Mixing:
    """The weights of a model's GRNs."""

    weights: pd.DataFrame
    """One row per entry of an output of a layer: layer (a number, or `grn_weights.OUT`), output,
    entry (its name), place (its column: 0 the embedding, then older to newer), b (mean over
    features), spread (standard deviation over features), added (the input-dependent part, averaged
    over validation text; NaN without text)."""
    bytes_read: int = 0
    """Bytes of the validation split that were read."""
    note: str = ""
    """Why there are no weights, or no input-dependent part."""


def read_mixing(results: Results) -> Mixing:
    """The weights that the fit's model learned; the model is run by its own packaged code.

    They are stored with the model: a later report reads them.
    """
    uri = results.model_uri
    if uri is None:
        return _nothing("no model has been trained to its end yet")
    models, model_id = results.store.models, model_id_of(uri)
    file = MIXING_FILE.format(results.lineage["corpus"]["fingerprint"])
    if stored := models.read_json(model_id, file):
        return Mixing(pd.DataFrame(stored["rows"]), stored["bytes_read"])
    ids_bt = _validation_ids(results)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = fetch_model(models, model_id, Path(scratch) / "model")
            rows = _weights(folder, ids_bt, Path(scratch))
        except (PipelineError, ValueError) as error:
            return _nothing(f"the model could not be read: {error}")
    if not rows:
        kind = results.config.model.residual
        return _nothing(f"a model of the residual kind {kind} has no GRN")
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
    child = subprocess.run(
        [sys.executable, "-m", grn_weights.__name__, str(folder), str(ids), str(result)],
        capture_output=True,
        text=True,
    )
    if child.returncode:
        raise PipelineError(one_line(child.stderr.strip().rpartition("\n")[2]))
    rows: list[dict[str, Any]] = json.loads(result.read_text())
    return rows


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
