"""What the mixtures of a trained model learned: the weight of each stack entry in each layer.

The DCA paper's Figure 10, for the packaged model of a fit. Axes: o outputs, n stack entries.
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
from pipelines.reporting.findings import Findings
from pipelines.storage.location import storage_folder
from pipelines.tracking.models import model_id_of
from pipelines.training.evaluation import to_ids

TEXTS = 16
"""Windows of the validation split over which the input-dependent part is averaged."""
OUTPUTS = {1: ("all",), 3: ("q", "k", "v")}
"""What the combinations of a block feed."""
OUT = "out"
"""The read-out behind the last block, as a layer and as an output."""


@dataclass(frozen=True)
class Mixing:
    """The weights of a model's GRNs."""

    weights: pd.DataFrame
    """A row an entry of an output of a layer: layer (a number, or OUT), output, entry (its name),
    place (its column: 0 the embedding, then older to newer), b (mean over features), spread (their
    standard deviation), added (the input-dependent part, averaged over validation text; NaN if
    there was none to read)."""
    bytes_read: int = 0
    """Of the validation split."""
    note: str = ""
    """Why there are no weights, or nothing added."""


def mixing(found: Findings) -> Mixing:
    """The weights that the fit's model learned, by its own package."""
    uri = found.model_uri
    if uri is None:
        return _nothing("no model has been trained to its end yet")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = fetch_model(found.store.models, model_id_of(uri), Path(scratch) / "model")
            model = load_model(folder).model
        except (PipelineError, ValueError) as error:
            return _nothing(f"the model could not be read: {error}")
        grns = dict(_grns(model))
        if not grns:
            kind = model.config.residual
            return _nothing(f"a model of the residual kind {kind} has no GRN: nothing to show")
        ids = _text(found)
        with torch.inference_mode():
            added = _added(model, grns, ids) if ids is not None else {}
            rows = [r for layer, grn in grns.items() for r in _rows(model, layer, grn, added)]
    note = "" if ids is not None else "the validation text is not in storage any more: b alone"
    return Mixing(pd.DataFrame(rows), 0 if ids is None else ids.numel(), note)


def _nothing(note: str) -> Mixing:
    return Mixing(pd.DataFrame(), note=note)


def _grns(model: Any) -> Iterator[tuple[str, GRN]]:
    """By layer; none for a kind that mixes in another way."""
    for number, block in enumerate(getattr(model, "blocks", []), 1):
        if isinstance(getattr(block, "mix", None), GRN):
            yield str(number), block.mix
    if isinstance(getattr(model, "mix", None), GRN):
        yield OUT, model.mix


def _text(found: Findings) -> Tensor | None:
    """Windows spread over the validation split, [TEXTS, seq_len]; None if it is gone."""
    seq_len = found.config.train.seq_len
    splits = find_splits(
        storage_folder(found.config.storage), found.lineage["corpus"]["fingerprint"]
    )
    if splits is None:
        return None
    data = open_bytes(splits["validation"])
    starts = np.linspace(0, len(data) - seq_len - 1, TEXTS).astype(np.int64)
    return to_ids(windows(data, starts, seq_len)[:, :-1], torch.device("cpu"))


def _added(model: Any, grns: dict[str, GRN], ids_bt: Tensor) -> dict[str, Tensor]:
    """The input-dependent weights of every GRN on a text, by layer: [o, n]."""
    found: dict[str, Tensor] = {}

    def listen(layer: str, combine: Any, stack: Stack, norms: Any) -> Any:
        found[layer] = grns[layer].input_weights(stack)
        return combine(stack, norms)

    for layer, grn in grns.items():
        grn.combine = partial(listen, layer, grn.combine)  # type: ignore[method-assign]
    model(ids_bt)
    return found


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
    """The entries of the stack that block `block`, from 1, sees, and the column of each.

    With k-DCA: the embedding, the sum of the older outputs, the last k; each has its column, also
    in a block that does not have all of them yet. Full DCA has a column for each block.
    """
    if last_k is None:
        return [("embedding", 0), *((f"block {n}", n) for n in range(1, count))]
    last = [(f"{n} back", last_k + 2 - n) for n in range(min(last_k, block - 1), 0, -1)]
    older = [("older", 1)] if count == len(last) + 2 else []
    return [("embedding", 0), *older, *last]
