"""The learned mixture weights of a fit's packaged model: each stack entry's weight in each layer.

As in Figure 10 of the DCA paper. Used by the page and the notebooks. Axes: o outputs, n stack
entries.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dca.residuals.grn import GRN, Stack
from pipelines.console.errors import PipelineError
from pipelines.data.batches import open_bytes, windows
from pipelines.data.splits import find_splits
from pipelines.registry.package import fetch_model, load_model
from pipelines.reporting.results import Results
from pipelines.storage.location import storage_folder
from pipelines.tracking.models import model_id_of
from pipelines.training.evaluation import to_ids

WINDOWS = 16
"""Windows of the validation split over which the input-dependent part is averaged."""
OUTPUTS = {1: ("all",), 3: ("q", "k", "v")}
"""Names of a block's mixtures, by their number: what they are the input of."""
OUT = "out"
"""Name of the read-out behind the last block, as a layer and as an output."""


@dataclass(frozen=True)
class Mixing:
    """The weights of a model's GRNs."""

    weights: pd.DataFrame
    """One row per entry of an output of a layer: layer (a number, or OUT), output, entry (its
    name), place (its column: 0 the embedding, then older to newer), b (mean over features), spread
    (standard deviation over features), added (the input-dependent part, averaged over validation
    text; NaN without text)."""
    bytes_read: int = 0
    """Bytes of the validation split that were read."""
    note: str = ""
    """Why there are no weights, or no input-dependent part."""


def read_mixing(results: Results) -> Mixing:
    """The weights that the fit's model learned; the model is run by its own packaged code."""
    uri = results.model_uri
    if uri is None:
        return _nothing("no model has been trained to its end yet")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = fetch_model(results.store.models, model_id_of(uri), Path(scratch) / "model")
            model = load_model(folder).model
        except (PipelineError, ValueError) as error:
            return _nothing(f"the model could not be read: {error}")
        return _mixing_of(model, _validation_ids(results))


def _mixing_of(model: Any, ids_bt: Tensor | None) -> Mixing:
    grns = dict(_grns(model))
    if not grns:
        kind = model.config.residual
        return _nothing(f"a model of the residual kind {kind} has no GRN")
    with torch.inference_mode():
        added = _input_weights(model, grns, ids_bt) if ids_bt is not None else {}
        rows = [row for layer, grn in grns.items() for row in _rows(model, layer, grn, added)]
    table = pd.DataFrame(rows)
    if ids_bt is None:
        return Mixing(table, note="the validation text is no longer in storage: only b is shown")
    return Mixing(table, ids_bt.numel())


def _nothing(note: str) -> Mixing:
    return Mixing(pd.DataFrame(), note=note)


def _grns(model: Any) -> Iterator[tuple[str, GRN]]:
    """The GRNs of a model by layer; none if its residual kind has none."""
    for number, block in enumerate(getattr(model, "blocks", []), 1):
        if isinstance(getattr(block, "mix", None), GRN):
            yield str(number), block.mix
    if isinstance(getattr(model, "mix", None), GRN):
        yield OUT, model.mix


def _validation_ids(results: Results) -> Tensor | None:
    """Windows spread over the validation split, [WINDOWS, seq_len]; None if it is gone."""
    seq_len = results.config.train.seq_len
    storage = storage_folder(results.config.storage)
    splits = find_splits(storage, results.lineage["corpus"]["fingerprint"])
    if splits is None:
        return None
    data = open_bytes(splits["validation"])
    starts = np.linspace(0, len(data) - seq_len - 1, WINDOWS).astype(np.int64)
    return to_ids(windows(data, starts, seq_len)[:, :-1], torch.device("cpu"))


def _input_weights(model: Any, grns: dict[str, GRN], ids_bt: Tensor) -> dict[str, Tensor]:
    """The input-dependent weights of every GRN on a text, by layer: [o, n].

    The model is changed: its GRNs record their weights in each forward pass.
    """
    recorded: dict[str, Tensor] = {}

    def record(layer: str, combine: Any, stack: Stack, norms: Any) -> Any:
        recorded[layer] = grns[layer].input_weights(stack)
        return combine(stack, norms)

    for layer, grn in grns.items():
        grn.combine = partial(record, layer, grn.combine)  # type: ignore[method-assign]
    model(ids_bt)
    return recorded


def _rows(model: Any, layer: str, grn: GRN, added: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    outputs, count, _ = grn.b_ond.shape
    names = (OUT,) if layer == OUT else OUTPUTS[outputs]
    block = model.config.depth + 1 if layer == OUT else int(layer)
    entries = entry_names(count, block, model.config.last_k)
    for o, output in enumerate(names):
        for n, (name, place) in enumerate(entries):
            b_d = grn.b_ond[o, n]
            yield {
                "layer": layer,
                "output": output,
                "entry": name,
                "place": place,
                "b": b_d.mean().item(),
                "spread": b_d.std(correction=0).item(),
                "added": added[layer][o, n].item() if layer in added else float("nan"),
            }


def entry_names(count: int, block: int, last_k: int | None) -> list[tuple[str, int]]:
    """The entries of the stack that block `block`, from 1, reads, and the column of each.

    With k-DCA: the embedding, the sum of the older outputs, the last k; each has its column, also
    in a block that does not have all of them yet. Full DCA has a column for each block.
    """
    if last_k is None:
        return [("embedding", 0), *((f"block {n}", n) for n in range(1, count))]
    last = [(f"{n} back", last_k + 2 - n) for n in range(min(last_k, block - 1), 0, -1)]
    older = [("older", 1)] if count == len(last) + 2 else []
    return [("embedding", 0), *older, *last]
