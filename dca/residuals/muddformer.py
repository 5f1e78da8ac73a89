"""MUDDFormer: q, k, v and the stream of a block each read an average of all earlier states.

Source: Xiao et al., "MUDDFormer: Breaking Residual Bottlenecks in Transformers via Multiway Dynamic
Dense Connections" (arXiv 2502.12170). With X_0 the embedding, X_i the state behind block i, and
four streams c (q, k, v and r) of the next block:

    A = GELU(RMS(X_i) W1) W2 + a;  X^c = sum_j A^c_j X_j, j = 0..i, with weights per token
    h = X^r + attention(norm(X^q), norm(X^k), norm(X^v));  X_i+1 = h + ff(norm_ff(h))

W1 ~ N(0, 1 / d), W2 = 0, and a is 1 for the last state and 0 for the others: the plain transformer.
The first block reads the embedding in all four, and behind the last block there is r only.

With `norm` (the paper's section 2.5, for models that are deep for their width) the averages are of
normed states and are added to the last one, and a = 0 at the start:

    X^c = X_i + sum_j A^c_j S_j, S_j = norm_j(X_j);  for r: X_i + norm_i(sum_j A^r_j S_j)

Fidelity. As in the authors' code: RMS in front of W1 has no gain; the hidden width is the number of
weights, 4 (i + 1), rounded up to a multiple of 64, and four times as wide in front of the single
stream behind the last block; with `norm`, the norm behind the average is on r only, where the paper
has it on all four, and its gain starts at 1e-3. Not included: feed-forward layers that widen with
the depth, which the paper changes together with the connections.

Axes: b batch, t time, d model, n states, c streams, f hidden features.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dca.block import (
    OUT,
    Block,
    Reading,
    ReadOut,
    normalise,
    readings_of,
    rms_norm,
    state_names,
)
from dca.config import ModelConfig
from dca.layers import row_products
from dca.mix import NORM_EPS, Recorded, sum_and_norm, weighted_sums
from dca.options import options
from dca.registry import residual

HIDDEN_MULTIPLE = 64
"""Hidden widths of the weights' MLPs are multiples of this."""
POST_GAIN = 1e-3
"""Of the norm behind the average of r at the start, with `norm`."""
STREAMS = ("q", "k", "v", "r")


@options
class Options:
    """Of muddformer."""

    norm: bool = False
    """Whether averages are of RMS-normalised states, added to the last state: PrePostDANorm, for
    depths of 24 and more."""


def hidden_width(streams: int, states: int) -> int:
    """Hidden width of the MLP that makes the weights of `streams` averages of `states` states."""
    width = streams * states * (4 if streams == 1 else 1)
    return -(-width // HIDDEN_MULTIPLE) * HIDDEN_MULTIPLE


class Average(ReadOut):
    """The averages of n states that a block, or the read-out, reads; they hold all parameters."""

    def __init__(self, config: ModelConfig, *, streams: int, states: int) -> None:
        super().__init__()
        hidden = hidden_width(streams, states)
        self.up_fd = nn.Parameter(torch.zeros(hidden, config.dim))
        self.down_cnf = nn.Parameter(torch.zeros(streams, states, hidden))
        self.a_cn = nn.Parameter(torch.zeros(streams, states))
        self.pre = self.post = None
        if config.options.norm:
            self.pre, self.post = rms_norm(config), rms_norm(config)
            nn.init.constant_(self.post.weight, POST_GAIN)
        else:
            self.a_cn.data[:, -1] = 1.0

    def combine(
        self, states: list[Tensor], norms: Sequence[nn.RMSNorm]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The stream r, the others after their norms, and the states for the next reader.

        `states` are X_0 to X_i; with `norm` they are S_0 to S_i-1 and X_i, and those for the next
        reader S_0 to S_i.
        """
        gains = [norm.weight for norm in norms]
        if self.pre is None or self.post is None:
            weights_btcn, last_btd = self._weights(states[-1])
            rows = [*states[:-1], last_btd]
            (r_btd,), normed, rows = weighted_sums(
                rows, weights_btcn, self.a_cn[..., None], [*gains, None]
            )
            return r_btd, normed, rows
        norm_btd, last_btd = normalise(states[-1], self.pre)
        weights_btcn, last_btd = self._weights(last_btd)
        of_last = [F.pad(self.a_cn[:-1], (0, 1), value=1.0), F.pad(self.a_cn[-1:], (0, 1))]
        _, (*normed, r_btd), (*rows, last_btd) = weighted_sums(
            [*states[:-1], norm_btd, last_btd],
            F.pad(weights_btcn, (0, 1)),
            torch.cat(of_last)[..., None],
            [*gains, self.post.weight],
        )
        return last_btd + r_btd, normed, rows

    def _weights(self, x_btd: Tensor) -> tuple[Tensor, Tensor]:
        """The part of the weights that depends on the last state, [b, t, c, n]; that state."""
        products_fbt, square_bt, x_btd = row_products(x_btd, self.up_fd)
        hidden_fbt = F.gelu(products_fbt * torch.rsqrt(square_bt + NORM_EPS))
        weights_cn = self.down_cnf.flatten(0, 1) @ hidden_fbt.flatten(1)
        shape = (*self.a_cn.shape, *square_bt.shape)
        return weights_cn.view(shape).permute(2, 3, 0, 1), x_btd

    def forward(self, state: list[Tensor], norm: nn.RMSNorm) -> Tensor:
        """The stream r after the norm: [b, t, d]."""
        return normalise(self.combine(state, [])[0], norm)[0]

    def readings(self, calls: Sequence[Recorded], config: ModelConfig) -> Iterator[Reading]:
        """Of the averages of its n states and, with `norm`, of the last state as it is."""
        streams, states = self.a_cn.shape
        names = STREAMS if streams == len(STREAMS) else [OUT]
        entries = state_names(states) + [("last", config.depth + 1)] * (self.pre is not None)
        widest = max(calls, key=lambda call: call.b_ond.shape[1])  # the others are norms
        return readings_of([widest], names, entries)

    def initialise(self, **random: Any) -> None:
        """Draw W1."""
        nn.init.normal_(self.up_fd, std=self.up_fd.shape[1] ** -0.5, **random)


@residual("muddformer")
class MUDDFormer(Block):
    """A block between lists of states, each [b, t, d], oldest first."""

    inputs = 3

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__(config, number)
        self.average = Average(config, streams=4, states=number) if number > 1 else None
        self.pre = rms_norm(config) if config.options.norm and number == 1 else None

    @classmethod
    def start(cls, x_btd: Tensor, config: ModelConfig) -> list[Tensor]:
        """The embedding is the first state."""
        return [x_btd]

    @classmethod
    def read_out(cls, config: ModelConfig) -> ReadOut:
        """The average behind the last block."""
        return Average(config, streams=1, states=config.depth + 1)

    @classmethod
    def kept(cls, config: ModelConfig) -> float:
        """Of every average the hidden layer three times and the weights twice; normed states."""
        averages = [(4, states) for states in range(2, config.depth + 1)]
        numbers = sum(
            3 * hidden_width(streams, states) + 2 * streams * states
            for streams, states in [*averages, (1, config.depth + 1)]
        )
        return numbers / config.dim + config.depth * config.options.norm

    @classmethod
    def state_rows(cls, config: ModelConfig) -> int:
        """The states behind the last block."""
        return config.depth + 1

    def advance(self, state: list[Tensor], *context: Any) -> list[Tensor]:
        """Average outside of the compiled part: numbers of states differ and have a kernel."""
        norms: list[nn.RMSNorm] = [*self.norms]
        if self.average is not None:
            r_btd, normed, state = self.average.combine(state, norms)
        else:
            ones_311 = state[0].new_ones(3, 1, 1)
            gains = [norm.weight for norm in norms]
            _, normed, (r_btd,) = weighted_sums(state, None, ones_311, gains)
            state = [r_btd]
            if self.pre is not None:
                norm_btd, r_btd = normalise(r_btd, self.pre)
                state = [norm_btd]
        return [*state, self(r_btd, normed, *context)]

    def readings(self, calls: Sequence[Recorded], config: ModelConfig) -> Iterator[Reading]:
        """The averages', except in the first block, which has none."""
        return self.average.readings(calls, config) if self.average else iter(())

    def forward(self, r_btd: Tensor, normed: list[Tensor], *context: Any) -> Tensor:
        """The stream r, and q, k and v after their norms, to the next state; all [b, t, d]."""
        h_btd = self.attention(normed, *context)
        stream_btd, normed_btd = sum_and_norm([r_btd, h_btd], self.norm_ff)
        return stream_btd + self.ff(normed_btd)

    def initialise(self, **random: Any) -> None:
        """Draw W1."""
        if self.average is not None:
            self.average.initialise(**random)
