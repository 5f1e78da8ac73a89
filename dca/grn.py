"""Generalised residual networks: a block's input as a learned mixture of all earlier outputs.

Source: Heddes et al., "DeepCrossAttention: Supercharging Transformer Residual Connections",
ICML 2025 (arXiv 2502.06785), sections 3 and 3.1. With f_i the entries of the stack:

    grn_v1   g = sum_i b_i f_i                         b_i a scalar
    grn_v2   g = sum_i b_i * f_i                       b_i a vector
    grn_v3   g = sum_i (b_i + relu(w . f_i)) * f_i     w shared by the entries

Where this differs from the paper, and why:
- relu is `clamp(min=0)`: the same function, but its gradient at 0 is 1, so that w = 0 trains.
- w may read the RMS-normalised entry and may start at random (`grn_norm`, `grn_init_std`); the
  defaults are measured, see the README.
- A stack of one entry has no w: behind the norm a scalar factor of the only entry cancels.

What it costs: dca/mix.py computes the combinations of a GRN and the norms behind them together.

Axes: b batch, t time, d model, n stack entries, o outputs of one GRN (3 for q, k, v).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dca.config import ModelConfig
from dca.mix import mix


class Stack:
    """The outputs a block can see, oldest first: f_0, the sum of the older ones, the last k.

    k-DCA, paper section 3.1; `last_k=None` keeps every output apart. Entries are held, not copied,
    and the sum of the older ones is kept incrementally: one addition per block.
    """

    def __init__(self, first_btd: Tensor, last_k: int | None) -> None:
        self.entries = [first_btd]
        self._recent = 0
        self._last_k = last_k

    def push(self, output_btd: Tensor) -> None:
        """Add a block's output; the oldest of the recent ones may join the running sum."""
        self.entries.append(output_btd)
        self._recent += 1
        if self._last_k is None or self._recent <= self._last_k:
            return
        self._recent -= 1
        if len(self.entries) == self._last_k + 2:  # the first to leave becomes the sum
            self.entries[1] = self.entries[1].to(self.entries[0].dtype)  # float32 under autocast
        else:
            self.entries[1] = self.entries[1] + self.entries.pop(2)


class GRN(nn.Module):
    """`outputs` independent combinations of the same `entries` stack entries."""

    def __init__(self, config: ModelConfig, *, entries: int, outputs: int) -> None:
        super().__init__()
        width = 1 if config.residual == "grn_v1" else config.dim
        self.b_ond = nn.Parameter(torch.ones(outputs, entries, width))
        self.w_od: nn.Parameter | None = None
        if config.has_w and entries > 1:
            self.w_od = nn.Parameter(torch.zeros(outputs, config.dim))
        self.norm = config.grn_norm

    def forward(self, stack: Stack, norms: Iterable[nn.RMSNorm]) -> tuple[Tensor, list[Tensor]]:
        """The first combination as it is, and every combination after its norm, each [b, t, d]."""
        gains = [norm.weight for norm in norms]
        skip_btd, normed, stack.entries = mix(
            stack.entries, self.b_ond, self.w_od, gains, norm=self.norm
        )
        return skip_btd, normed
