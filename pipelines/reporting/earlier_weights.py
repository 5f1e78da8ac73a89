"""The learned weights of models that earlier versions of the project have packaged.

Used by `learned_weights`, in the process that runs such a package's code. Those versions had
weights to show for the mixtures of `dca` and the `grn` kinds. Axes: o outputs, n stack entries.
"""

from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

MODULE = ".".join(["dca", "residuals", "grn"])
"""Of the mixtures, in such a package; this project has none of that name."""
OUTPUTS = {1: ("all",), 3: ("q", "k", "v")}


def earlier_weights(model: Any, ids_bt: "Tensor | None", out: str) -> Iterator[dict[str, Any]]:
    """The rows of a model, over a text if there is one; `out` is the layer of its read-out."""
    kind = import_module(MODULE).GRN
    layers = {str(number): block for number, block in enumerate(getattr(model, "blocks", []), 1)}
    found = {name: getattr(layer, "mix", None) for name, layer in layers.items()}
    found[out] = getattr(model, "mix", None)
    mixtures = {name: one for name, one in found.items() if isinstance(one, kind)}
    added = _input_weights(model, mixtures, ids_bt) if ids_bt is not None else {}
    for name, mixture in mixtures.items():
        yield from _rows(name, out, mixture, added.get(name), model.config)


def _input_weights(model: Any, mixtures: dict[str, Any], ids_bt: "Tensor") -> dict[str, "Tensor"]:
    """The input-dependent weights of every mixture on a text, by layer: [o, n]."""
    recorded: dict[str, Tensor] = {}

    def record(name: str, combine: Any, stack: Any, norms: Any) -> Any:
        recorded[name] = mixtures[name].input_weights(stack)
        return combine(stack, norms)

    for name, mixture in mixtures.items():
        mixture.combine = partial(record, name, mixture.combine)
    model(ids_bt)
    return recorded


def _rows(
    layer: str, out: str, mixture: Any, added_on: "Tensor | None", config: Any
) -> Iterator[dict[str, Any]]:
    outputs, count, _ = mixture.b_ond.shape
    block = config.depth + 1 if layer == out else int(layer)
    for o, output in enumerate((out,) if layer == out else OUTPUTS[outputs]):
        for n, (entry, place) in enumerate(_entries(count, block, config.last_k)):
            b_d = mixture.b_ond[o, n]
            yield {
                "layer": layer,
                "output": output,
                "entry": entry,
                "place": place,
                "b": b_d.mean().item(),
                "spread": b_d.std(correction=0).item(),
                "added": float("nan") if added_on is None else added_on[o, n].item(),
            }


def _entries(count: int, block: int, last_k: int | None) -> list[tuple[str, int]]:
    """The entries of the stack that a block reads, and their places."""
    if last_k is None:
        return [("embedding", 0), *((f"block {n}", n) for n in range(1, count))]
    last = [(f"{n} back", last_k + 2 - n) for n in range(min(last_k, block - 1), 0, -1)]
    older = [("older", 1)] if count == len(last) + 2 else []
    return [("embedding", 0), *older, *last]
