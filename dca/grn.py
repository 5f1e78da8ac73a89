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

Weights per token and feature never exist: the sum is split into sum_i b_i * f_i, whose weights have
no token axis, and sum_i s_i f_i, whose weights s_i = relu(w . f_i) have no feature axis.

Axes: b batch, t time, d model, n stack entries, o outputs of one GRN (3 for q, k, v).
"""

import torch
from torch import Tensor, nn

from dca.config import ModelConfig

NORM_EPS = 1e-6


class Stack:
    """The outputs a block can see, oldest first: f_0, the sum of the older ones, the last k.

    k-DCA, paper section 3.1; `last_k=None` keeps every output apart. Entries are held, not copied,
    and the sum of the older ones is kept incrementally: one addition per block.
    """

    def __init__(self, first_btd: Tensor, last_k: int | None) -> None:
        self._first = first_btd
        self._older: Tensor | None = None
        self._recent: list[Tensor] = []
        self._last_k = last_k

    def push(self, output_btd: Tensor) -> None:
        """Add a block's output; the oldest of the recent ones may join the running sum."""
        self._recent.append(output_btd)
        if self._last_k is not None and len(self._recent) > self._last_k:
            oldest = self._recent.pop(0)
            if self._older is None:  # under autocast outputs are bfloat16, the embedding is not
                self._older = oldest.to(self._first.dtype)
            else:
                self._older = self._older + oldest

    def entries(self) -> list[Tensor]:
        """The n entries, each [b, t, d]."""
        older = [] if self._older is None else [self._older]
        return [self._first, *older, *self._recent]


class ResidualStream:
    """The stack of a plain transformer: one entry, the sum of everything so far."""

    def __init__(self, first_btd: Tensor) -> None:
        self._sum = first_btd

    def push(self, output_btd: Tensor) -> None:
        """Add a block's output to the stream."""
        self._sum = self._sum + output_btd

    def entries(self) -> list[Tensor]:
        """The stream, [b, t, d], as a list of one."""
        return [self._sum]


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

    def forward(self, entries: list[Tensor]) -> tuple[Tensor, ...]:
        """Map n entries [b, t, d] to `outputs` mixtures [b, t, d]."""
        w_od = self.w_od
        scores = [] if w_od is None else [self._scores(f_btd, w_od) for f_btd in entries]
        return tuple(
            self._combine(entries, b_nd, [s_bto[..., o, None] for s_bto in scores])
            for o, b_nd in enumerate(self.b_ond.unbind())
        )

    def _scores(self, f_btd: Tensor, w_od: Tensor) -> Tensor:
        """relu(w . f) for every output: [b, t, o]."""
        s_bto = nn.functional.linear(f_btd, w_od.to(f_btd.dtype))
        if self.norm:
            s_bto = s_bto * torch.rsqrt(f_btd.square().mean(-1, keepdim=True) + NORM_EPS)
        return s_bto.clamp(min=0)

    @staticmethod
    def _combine(entries: list[Tensor], b_nd: Tensor, scores_bt1: list[Tensor]) -> Tensor:
        b = b_nd.to(entries[0].dtype).unbind()
        out_btd = b[0] * entries[0]
        for b_d, f_btd in zip(b[1:], entries[1:], strict=True):
            out_btd = torch.addcmul(out_btd, b_d, f_btd)
        for s_bt1, f_btd in zip(scores_bt1, entries, strict=False):
            out_btd = torch.addcmul(out_btd, s_bt1, f_btd)
        return out_btd
