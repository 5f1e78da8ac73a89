"""LAuReL: a learned weight of each sublayer's output, and a low-rank map of the stream.

Source: Menghani et al., "LAuReL: Learned Augmented Residual Layer" (arXiv 2411.07501), the form
RW + LR. Around each sublayer, with A [d, r] and B [r, d]:

    x' = a f(norm(x)) + b (x + x A B);  (a, b) = 2 softmax(w)

At the start w = 0 and B = 0, so that a = b = 1: the plain transformer.

Fidelity. The paper leaves open how a and b are kept in bounds: 2 softmax keeps their sum at 2. A
starts, as in the paper, with orthogonal columns: A_ij = 1 / sqrt(r d) where i mod r = j, else 0. It
uses ranks of 4 to 64; the default here grows with the width, d / 32. The third form of the paper
(PA) also adds earlier states; it is not implemented.

Axes: b batch, t time, d model, r rank.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dca.block import SUBLAYERS, Reading, ReadOut, SublayerBlock, fixed_readings
from dca.config import ModelConfig
from dca.layers import row_products
from dca.mix import Recorded, weighted_sums
from dca.options import Annotated, FieldError, Range, options
from dca.registry import residual


@options
class Options:
    """Of laurel."""

    rank: Annotated[int, Range(ge=1)] | None = None
    """Columns of the matrix A of each sublayer; null: dim / 32, at least 1."""

    def check(self, config):  # type: ignore[no-untyped-def]  # no names of types in this class
        """A map of the stream has no higher rank than its width."""
        if self.rank is not None and self.rank > config.dim:
            message = f"expected null or at most dim = {config.dim}, got {self.rank}"
            raise FieldError("rank", message)

    def resolved(self, config):  # type: ignore[no-untyped-def]  # no names of types in this class
        """The number of columns."""
        return {"rank": self.rank or max(1, config.dim // 32)}


class Terms(NamedTuple):
    """The residual stream, as rows [b, t, d] and their scalar weights [1, n, 1]."""

    rows: list[Tensor]
    b_1n1: Tensor
    mapped_btd: Tensor | None = None
    """Between reading and writing: x A B."""


class Augmented(nn.Module):
    """The parameters around one sublayer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        rank = config.options.resolved(config)["rank"]
        self.w = nn.Parameter(torch.zeros(2))
        columns_rd = torch.zeros(rank, config.dim)
        for column in range(min(rank, config.dim)):
            columns_rd[column, column::rank] = (rank * config.dim) ** -0.5
        self.a_rd = nn.Parameter(columns_rd)
        self.b_rd = nn.Parameter(torch.zeros(rank, config.dim))

    def map(self, x_btd: Tensor) -> tuple[Tensor, Tensor]:
        """x A B, [b, t, d], and x for the next reader."""
        products_rbt, _, x_btd = row_products(x_btd, self.a_rd)
        return (products_rbt.movedim(0, -1).to(self.b_rd.dtype) @ self.b_rd).to(x_btd.dtype), x_btd

    def weights(self) -> Tensor:
        """Of x, of f and of x A B: [1, 3, 1]."""
        a, b = (2 * self.w.softmax(0)).unbind()
        return torch.stack([b, a, b])[None, :, None]


@residual("laurel")
class Laurel(SublayerBlock):
    """A block between streams, each a weighted sum of rows that its reader computes."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__(config, number)
        self.around_attention, self.around_ff = Augmented(config), Augmented(config)

    @classmethod
    def start(cls, x_btd: Tensor, config: ModelConfig) -> Terms:
        """The embedding is the stream."""
        return Terms([x_btd], torch.ones(1, 1, 1, device=x_btd.device))

    @classmethod
    def read_out(cls, config: ModelConfig) -> ReadOut:
        """Reads the stream."""
        return _Sum()

    @classmethod
    def kept(cls, config: ModelConfig) -> float:
        """Of every block three more rows: x A B twice, and one stream."""
        return 3.0 * config.depth

    @classmethod
    def state_rows(cls, config: ModelConfig) -> int:
        """The rows of a stream."""
        return 3

    def readings(self, calls: Sequence[Recorded], config: ModelConfig) -> Iterator[Reading]:
        """a and b of each sublayer."""
        for around, output in zip((self.around_attention, self.around_ff), SUBLAYERS, strict=True):
            b, a, _ = around.weights().flatten()
            yield from fixed_readings(output, ["stream", "output"], [b, a])

    def read(self, state: Terms, part: int, norm: nn.RMSNorm) -> tuple[Tensor, Terms]:
        """The stream after its norm."""
        around = self.around_ff if part else self.around_attention
        (x_btd,), (normed_btd,), _ = weighted_sums(
            state.rows, None, state.b_1n1, [norm.weight], raw=[True]
        )
        mapped_btd, x_btd = around.map(x_btd)
        return normed_btd, Terms([x_btd], around.weights(), mapped_btd)

    def write(self, state: Terms, part: int, y_btd: Tensor) -> Terms:
        """The rows whose weighted sum is x'."""
        assert state.mapped_btd is not None
        return Terms([*state.rows, y_btd, state.mapped_btd], state.b_1n1)


class _Sum(ReadOut):
    def forward(self, state: Terms, norm: nn.RMSNorm) -> Tensor:
        return weighted_sums(state.rows, None, state.b_1n1, [norm.weight])[1][0]
