"""Residual streams as the public package hyper-connections makes them, between our own sublayers.

For the rows "public hyper_connections", "public frac" and "public mhc" of benchmarks/model.py: all
but the connections is our standard transformer. The package's mHC reads each stream by itself,
where the paper and ours read all of them together, and its parts of frac have one output each.
"""

import importlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from dca import ModelConfig, build_model
from dca.block import ReadOut, SublayerBlock

PACKAGE = "hyper_connections"
STREAMS, PARTS = 4, 2
KINDS = ("hyper_connections", "frac", "mhc")


class Between(SublayerBlock):
    """A block whose state is what the package's connections hand on, [streams * b, t, d]."""

    def __init__(self, config: ModelConfig, number: int, kind: str) -> None:
        super().__init__(config, number)
        package = importlib.import_module(PACKAGE)
        made = package.mHC if kind == "mhc" else package.HyperConnections
        counts = {"num_residual_streams": STREAMS}
        if kind == "frac":
            counts = {"num_residual_streams": 1, "num_fracs": PARTS}
        self.around = nn.ModuleList(
            made(**counts, dim=config.dim, layer_index=2 * number - 2 + part) for part in (0, 1)
        )

    def read(self, state: Any, part: int, norm: nn.RMSNorm) -> tuple[Tensor, Any]:
        """The package's input of a sublayer, after our norm."""
        y_btd, streams, weights = self.around[part].width_connection(state)  # type: ignore[operator]
        return norm(y_btd), (streams, weights)

    def write(self, state: Any, part: int, y_btd: Tensor) -> Any:
        """The streams behind the sublayer."""
        streams, weights = state
        return self.around[part].depth_connection(y_btd, streams, **weights)  # type: ignore[operator]


class Sum(ReadOut):
    """The sum of the streams, as the package reduces them."""

    def __init__(self, reduce: nn.Module) -> None:
        super().__init__()
        self.reduce = reduce

    def forward(self, state: Tensor, norm: nn.RMSNorm) -> Tensor:
        """[streams * b, t, d] to [b, t, d]."""
        return norm(self.reduce(state))


def build_streams(config: ModelConfig) -> nn.Module:
    """A model of `config`'s size with the package's connections of its residual kind."""
    kind = config.residual
    package = importlib.import_module(PACKAGE)
    streams = 1 if kind == "frac" else STREAMS
    expand, reduce = package.get_expand_reduce_stream_functions(streams)
    model: Any = build_model(replace(config, residual="standard"))
    blocks = [Between(model.config, number, kind) for number in range(1, config.depth + 1)]
    model.kind = SimpleNamespace(start=lambda x_btd, config: expand(x_btd))
    model.blocks, model.mix = nn.ModuleList(blocks), Sum(reduce)
    model.initialise(torch.Generator().manual_seed(0))
    return model
