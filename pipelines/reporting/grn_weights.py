"""The weights of the GRNs of a packaged model, read with its own code in its own process.

Used by `pipelines.reporting.mixing`. Python keeps the first `dca` that it imports: a model whose
package has other sources than this project can be run no other way. Axes: o outputs, n stack
entries.
"""

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from dca.residuals.dca import GRN, Stack

OUTPUTS = {1: ("all",), 3: ("q", "k", "v")}
"""Names of a block's mixtures, by their number: what they are the input of."""
OUT = "out"
"""Name of the read-out behind the last block, as a layer and as an output."""


def grn_weights(model: Any, ids_bt: "Tensor | None") -> list[dict[str, Any]]:
    """The rows of `Mixing.weights`; none if the model's residual kind has no GRN.

    Args:
        model: The model, loaded from its package.
        ids_bt: Text over which the input-dependent part is averaged; None if there is none.

    """
    import torch

    grns = dict(_grns(model))
    with torch.inference_mode():
        added = _input_weights(model, grns, ids_bt) if ids_bt is not None else {}
        return [row for layer, grn in grns.items() for row in _rows(model, layer, grn, added)]


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


def _grns(model: Any) -> "Iterator[tuple[str, GRN]]":
    """The GRNs of a model by layer; none if its residual kind has none."""
    from dca.residuals.dca import GRN  # the model's own, which is imported by now

    for number, block in enumerate(getattr(model, "blocks", []), 1):
        if isinstance(getattr(block, "mix", None), GRN):
            yield str(number), block.mix
    if isinstance(getattr(model, "mix", None), GRN):
        yield OUT, model.mix


def _input_weights(model: Any, grns: "dict[str, GRN]", ids_bt: "Tensor") -> "dict[str, Tensor]":
    """The input-dependent weights of every GRN on a text, by layer: [o, n].

    The model is changed: its GRNs record their weights in each forward pass.
    """
    recorded: dict[str, Tensor] = {}

    def record(layer: str, combine: Any, stack: "Stack", norms: Any) -> Any:
        recorded[layer] = grns[layer].input_weights(stack)
        return combine(stack, norms)

    for layer, grn in grns.items():
        grn.combine = partial(record, layer, grn.combine)  # type: ignore[method-assign]
    model(ids_bt)
    return recorded


def _rows(
    model: Any, layer: str, grn: "GRN", added: "dict[str, Tensor]"
) -> Iterator[dict[str, Any]]:
    outputs, count, _ = grn.b_ond.shape
    names = (OUT,) if layer == OUT else OUTPUTS[outputs]
    block = model.config.depth + 1 if layer == OUT else int(layer)
    entries = entry_names(count, block, model.config.options.last_k)
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


def _main(folder: Path, ids: Path, result: Path) -> None:
    import numpy as np
    import torch

    from pipelines.registry.package import load_model

    packaged = load_model(folder)
    text_bt = torch.from_numpy(np.load(ids)) if ids.exists() else None
    result.write_text(json.dumps(grn_weights(packaged.model, text_bt)))


if __name__ == "__main__":
    _main(*map(Path, sys.argv[1:]))
