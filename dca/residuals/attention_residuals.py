"""Attention residuals: each sublayer reads a softmax-weighted average of all earlier outputs.

Source: Kimi Team, "Attention Residuals" (arXiv 2603.15031). With v_0 the embedding and v_i the
output of sublayer i (attention and feed-forward in turn), sublayer l, from 1, and the final norm
read

    h_l = norm(sum_i a_i v_i), a = softmax_i(w_l . RMS(v_i)), i = 0..l-1;  v_l = sublayer_l(h_l)

in place of the residual stream: there is no other skip. With `blocks` the outputs of adjacent
sublayers are summed, so that the sources are the embedding, the sums of the finished groups, and
the sum so far of the current one. With `heads` h every group of d / h adjacent features has a
softmax of its own ("Multi-Head Attention Residuals", arXiv 2607.27230).

At the start w = 0 and the average is the residual stream, divided by the number of outputs. The
norm behind it removes the factor but for its epsilon, so that it starts as the plain transformer to
about 1e-5, and a trained transformer can be continued.

Fidelity. The paper's RMS has a gain for each reader, which would be a factor of w: it is left out.
So is w of the first sublayer, which reads the embedding only.
The papers put RMS over all features, with heads too. `blocks` counts groups of equal numbers of
sublayers, the last one possibly shorter; the paper has about 8.

Speed: the scores w_l . RMS(v_i) of a source for all later readers are one matrix product, at the
time when the source is made. So block 1 holds w of every reader but the first.

Axes: b batch, t time, d model, r readers, h heads, n sources.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dca.block import OUT, SUBLAYERS, Reading, ReadOut, SublayerBlock, normalise, readings_of
from dca.config import ModelConfig
from dca.layers import row_products
from dca.mix import NORM_EPS, Recorded, weighted_sums
from dca.options import Annotated, FieldError, Range, options
from dca.registry import residual


@options
class Options:
    """Of attention_residuals."""

    blocks: Annotated[int, Range(ge=1)] | None = None
    """Groups of sublayers whose outputs are summed into one source; null: every output is one."""
    heads: Annotated[int, Range(ge=1)] = 1
    """Groups of features with a softmax of their own; must divide dim."""

    def check(self, config):  # type: ignore[no-untyped-def]  # no names of types in this class
        """Heads need groups of equal width."""
        if config.dim % self.heads:
            message = f"expected a divisor of dim = {config.dim}, got {self.heads}"
            raise FieldError("heads", message)

    def resolved(self, config):  # type: ignore[no-untyped-def]  # no names of types in this class
        """The number of groups that there are: all but the last one are of equal size."""
        sublayers = 2 * config.depth
        size = -(-sublayers // (self.blocks or sublayers))
        return {"blocks": None if size == 1 else -(-sublayers // size)}


class Sources(NamedTuple):
    """What sublayers read: the finished sources, and the scores that later readers give them."""

    rows: list[Tensor]
    """[b, t, d], oldest first."""
    scores: list[list[Tensor]]
    """Of each later reader, for each finished source, [b, t], or with heads [h, b, t]."""
    partial: tuple[Tensor, Tensor] | None
    """The sum of the current group, [b, t, d], and its score of the next reader."""
    w_rd: Tensor | None
    """The vectors of all readers but the first; None in front of the first block."""
    outputs: int
    """Number of sublayers before."""

    def push(self, y_btd: Tensor, size: int, heads: int) -> "Sources":
        """With a sublayer's output, one of `size` that are summed into a source."""
        assert self.w_rd is not None
        outputs = self.outputs + 1
        total_btd = y_btd if self.partial is None else self.partial[0] + y_btd
        if outputs % size:
            (score,), total_btd = _scores(total_btd, self.w_rd[outputs - 1 : outputs], heads)
            return self._replace(partial=(total_btd, score), outputs=outputs)
        scores, total_btd = _scores(total_btd, self.w_rd[outputs - 1 :], heads)
        both = zip(self.scores, scores, strict=True)
        return Sources(
            [*self.rows, total_btd], [[*s, new] for s, new in both], None, self.w_rd, outputs
        )

    def read(self, norm: nn.RMSNorm) -> tuple[Tensor, "Sources"]:
        """The average of the next reader after its norm, [b, t, d]; the sources for later ones."""
        if not self.outputs:
            normed_btd, x_btd = normalise(self.rows[0], norm)
            return normed_btd, self._replace(rows=[x_btd])
        rows, (scores, *later) = [*self.rows], self.scores
        if self.partial is not None:
            rows, scores = [*rows, self.partial[0]], [*scores, self.partial[1]]
        weights = torch.stack(scores).softmax(0)  # [n, b, t] or [n, h, b, t]
        weights = weights.movedim((-2, -1, 0), (0, 1, 2)).unsqueeze(2)  # [b, t, 1, n], and h
        _, (normed_btd,), rows = weighted_sums(rows, weights, None, [norm.weight])
        partial = None if self.partial is None else (rows.pop(), self.partial[1])
        return normed_btd, self._replace(rows=rows, scores=later, partial=partial)


def _scores(v_btd: Tensor, w_rd: Tensor, heads: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Of a source for each of r readers, [b, t] or [h, b, t]; the source for its readers."""
    products, square_bt, v_btd = row_products(v_btd, w_rd, heads=heads)
    return (products * torch.rsqrt(square_bt + NORM_EPS)).unbind(), v_btd


@residual("attention_residuals")
class AttentionResiduals(SublayerBlock):
    """A block between lists of sources."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__(config, number)
        sublayers, options = 2 * config.depth, config.options
        self.size = 1 if options.blocks is None else -(-sublayers // options.blocks)
        self.heads = options.heads
        self.w_rd: nn.Parameter | None = None
        if number == 1:
            self.w_rd = nn.Parameter(torch.zeros(sublayers, config.dim))

    @classmethod
    def start(cls, x_btd: Tensor, config: ModelConfig) -> Sources:
        """The embedding is the first source; block 1 scores it."""
        return Sources([x_btd], [], None, None, 0)

    @classmethod
    def read_out(cls, config: ModelConfig) -> ReadOut:
        """The last reader."""
        return _Average()

    @classmethod
    def kept(cls, config: ModelConfig) -> float:
        """No stream, and of every source and reader about three numbers for each head."""
        sources = cls.state_rows(config)
        pairs = (2 * config.depth + 1) * (sources + 1) / 2
        return 3 * config.options.heads * pairs / config.dim - config.depth

    @classmethod
    def state_rows(cls, config: ModelConfig) -> int:
        """The sources of the last reader, with the sum of an unfinished group."""
        sublayers = 2 * config.depth
        return 1 + min(sublayers, config.options.blocks or sublayers)

    def readings(self, calls: Sequence[Recorded], config: ModelConfig) -> Iterator[Reading]:
        """The mean shares of the sources, over heads too."""
        for call, output in zip(calls, SUBLAYERS, strict=True):
            yield from readings_of([call], [output], _names(config, call))

    def read(self, state: Sources, part: int, norm: nn.RMSNorm) -> tuple[Tensor, Sources]:
        """The average after its norm."""
        if self.w_rd is not None and state.w_rd is None:
            scores, x_btd = _scores(state.rows[0], self.w_rd, self.heads)
            state = Sources([x_btd], [[score] for score in scores], None, self.w_rd, 0)
        return state.read(norm)

    def write(self, state: Sources, part: int, y_btd: Tensor) -> Sources:
        """With the sublayer's output."""
        return state.push(y_btd, self.size, self.heads)


class _Average(ReadOut):
    def forward(self, state: Sources, norm: nn.RMSNorm) -> Tensor:
        return state.read(norm)[0]

    def readings(self, calls: Sequence[Recorded], config: ModelConfig) -> Iterator[Reading]:
        return readings_of(calls, [OUT], _names(config, calls[0]))


def _names(config: ModelConfig, call: Recorded) -> list[tuple[str, int]]:
    """Of the sources of a reader, with their places: sublayers, or groups of them."""
    count = call.b_ond.shape[1]
    if config.options.blocks is None:
        names = [f"{SUBLAYERS[i % 2]} {1 + i // 2}" for i in range(count - 1)]
    else:
        names = [f"group {i}" for i in range(1, count)]
    return [("embedding", 0), *((name, i) for i, name in enumerate(names, 1))]
