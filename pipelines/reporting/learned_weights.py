"""The weights that a packaged model has learned, read with its own code in its own process.

Used by `pipelines.reporting.mixing`. Python keeps the first `dca` that it imports: a model whose
package has other sources than this project can be run no other way.
"""

import json
import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.reporting.earlier_weights import earlier_weights

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE = "dca"
"""The model's own, which is imported by now."""
OUT = "out"
"""Name of the read-out behind the last block, as a layer."""


def learned_weights(model: Any, ids_bt: "Tensor | None") -> list[dict[str, Any]]:
    """The rows of `Mixing.weights`; none if the model's residual kind has learned none.

    Args:
        model: The model, loaded from its package. It is changed: its layers record what they read.
        ids_bt: Text over which the input-dependent part is averaged; None if there is none.

    """
    import torch

    if not hasattr(import_module(f"{PACKAGE}.mix"), "recorded"):
        with torch.inference_mode():
            return [*earlier_weights(model, ids_bt, OUT)]
    layers = {str(number): block for number, block in enumerate(getattr(model, "blocks", []), 1)}
    layers[OUT] = getattr(model, "mix", None)
    with torch.inference_mode():
        calls = _recorded(model, layers, torch.zeros(1, 1).long() if ids_bt is None else ids_bt)
        rows = [row for name in layers for row in _rows(name, layers[name], calls, model.config)]
    if ids_bt is None:
        rows = [row | {"added": float("nan")} for row in rows]
    return rows


def _recorded(model: Any, layers: dict[str, Any], ids_bt: "Tensor") -> dict[str, Any]:
    """The calls of the mixing by each layer over a text."""
    from dca.mix import recorded  # the model's own, which is imported by now

    found: dict[str, Any] = {}

    def record(name: str, run: Any, *arguments: Any) -> Any:
        with recorded() as found[name]:
            return run(*arguments)

    for name, layer in layers.items():
        method = "forward" if name == OUT else "advance"
        setattr(layer, method, partial(record, name, getattr(layer, method)))
    model(ids_bt)
    return found


def _rows(name: str, layer: Any, calls: dict[str, Any], config: Any) -> Iterator[dict[str, Any]]:
    for reading in layer.readings(calls.get(name, []), config):
        yield {"layer": name, **reading._asdict()}


def _main(folder: Path, ids: Path, result: Path) -> None:
    import numpy as np
    import torch

    from pipelines.registry.package import load_model

    packaged = load_model(folder)
    text_bt = torch.from_numpy(np.load(ids)) if ids.exists() else None
    result.write_text(json.dumps(learned_weights(packaged.model, text_bt)))


if __name__ == "__main__":
    _main(*map(Path, sys.argv[1:]))
