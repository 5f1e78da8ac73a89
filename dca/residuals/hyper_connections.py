"""Hyper-connections and frac-connections: residual streams, or parts of one, with learned weights.

Sources: Zhu et al., "Hyper-Connections" (arXiv 2409.19606) and "Frac-Connections: Fractional
Extension of Hyper-Connections" (arXiv 2503.14125). Around each sublayer, attention or feed-forward,
with H the n streams [n, d]:

    h = norm(A_m^T H);  y = sublayer(h);  H' = A_r^T H + B^T y

A_m [n, 1], A_r [n, n] and B [1, n] are static weights, to each of which `dynamic` adds
s * tanh(norm(H) W). As in the paper the static A_m of sublayer l, from 0, reads stream l mod n, A_r
is the identity, B is 1, W is 0 and s is 0.01: all streams are the one of the pre-norm transformer.

`frac` has one stream in m parts of width d / m, in the place of n streams of width d. A_m is [m, m]
and makes every part of the sublayer's input; part i of y is added to part i of the stream, B_i
times. A_m and A_r start as the identity, B as 1: the plain transformer.

Fidelity. The norm in front of W is an RMSNorm without a gain, which would be a factor of W, and in
`frac` it is of each part. The read-out is the mean of the streams. The paper sums them; the final
norm makes both equal except for its epsilon. The mean is exactly the transformer's stream.

Speed: H' is made by its reader, which has its own weights too. Static weights of both are
multiplied with each other first, so that one pass over H and y makes H' and the next input.

Axes: b batch, t time, d model, n streams (or parts), k rows to mix, i inputs of a sublayer (1, or m
of its parts), c weights of a stream (i to read, n to mix, 1 to write).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dca.block import SUBLAYERS, Reading, ReadOut, SublayerBlock, normalise, readings_of
from dca.config import ModelConfig
from dca.layers import row_products
from dca.mix import NORM_EPS, Recorded, weighted_sums
from dca.options import Annotated, FieldError, Range, ReadBy, options
from dca.registry import residual

START_SCALE = 0.01
"""s at the start, as in the paper."""


@options
class Options:
    """Of hyper_connections and of frac."""

    streams: Annotated[int, Range(ge=1, le=64), ReadBy("hyper_connections")] = 4
    """Residual streams of hyper_connections."""
    parts: Annotated[int, Range(ge=2, le=64), ReadBy("frac")] = 2
    """Parts of the stream of frac; must divide dim."""
    dynamic: bool = True
    """Whether the weights depend on the streams, or are the same for every token."""

    def check(self, config):  # type: ignore[no-untyped-def]  # no names of types in this class
        """frac needs parts of equal width."""
        if config.residual == "frac" and config.dim % self.parts:
            message = f"expected a divisor of dim = {config.dim}, got {self.parts}"
            raise FieldError("parts", message)


class Streams(NamedTuple):
    """n streams as weighted sums of k rows, which their reader computes."""

    rows: list[Tensor]
    """Each [b, t, d]: the streams in front of a sublayer and, once there is one, its output."""
    b_nk: Tensor
    """Static weights."""
    weights_btnk: Tensor | None = None
    """What is added to them for each token."""


class Connection(nn.Module):
    """The connections around one sublayer; they hold all parameters that the kinds add."""

    def __init__(self, read_ni: Tensor, width: int, *, dynamic: bool) -> None:
        """`read_ni` is A_m at the start, `width` the features of a stream or part."""
        super().__init__()
        streams, inputs = read_ni.shape
        self.widths = (inputs, streams, 1)
        static_nc = torch.zeros(streams, sum(self.widths))
        static_nc[:, :inputs] = read_ni
        static_nc[:, inputs:-1] = identity(static_nc, streams)
        static_nc[:, -1] = 1.0
        self.static_nc = nn.Parameter(static_nc)
        self.dynamic_cd: nn.Parameter | None = None
        if dynamic:
            self.dynamic_cd = nn.Parameter(torch.zeros(sum(self.widths), width))
            self.scale_c = nn.Parameter(torch.full((3,), START_SCALE))

    def forward(self, state: Streams, norm: nn.RMSNorm) -> tuple[Tensor, Streams]:
        """The sublayer's input after its norm, [b, t, d], and the streams behind the sublayer, the
        rows of whose output are missing."""
        read_ni, mix_nn, write_n1 = self.static_nc.split(self.widths, 1)
        b_nk = torch.cat([mix_nn.T, self._written(write_n1)], 1)
        if self.dynamic_cd is None:
            of_rows_ik = (read_ni.T[..., None] * state.b_nk).sum(1)
            b_ok = torch.cat([state.b_nk, of_rows_ik])
            normed_btd, streams, _ = read(state.rows, b_ok, None, norm, before=len(state.b_nk))
            return normed_btd, Streams(streams, b_nk)
        scores, streams = self._scores(make(state))
        read_nibt, mix_nnbt, write_n1bt = scores.split(self.widths, 1)
        read_btin = read_nibt.permute(2, 3, 1, 0)
        normed_btd, _, streams = read(streams, read_ni.T, read_btin, norm)
        written_knbt = self._written(write_n1bt).transpose(0, 1)
        weights_btnk = torch.cat([mix_nnbt, written_knbt]).permute(2, 3, 1, 0)
        return normed_btd, Streams(streams, b_nk, weights_btnk)

    def _scores(self, streams: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """s * tanh(norm(H) W), [n, c, b, t], and the streams for their next reader."""
        assert self.dynamic_cd is not None
        found, rows = [], []
        for stream_btd in streams:
            products_cbt, square_bt, stream_btd = row_products(stream_btd, self.dynamic_cd)
            found.append(products_cbt * torch.rsqrt(square_bt + NORM_EPS))
            rows.append(stream_btd)
        scales = zip(self.scale_c, self.widths, strict=True)
        scale_c = torch.cat([scale.expand(width) for scale, width in scales])
        return scale_c[:, None, None] * torch.stack(found).tanh(), rows

    def _written(self, write_n1: Tensor) -> Tensor:
        """The weights of a sublayer's output in the streams: of its one row, or part by part."""
        streams, inputs = len(write_n1), self.widths[0]
        if inputs == 1:
            return write_n1
        shape = (streams, streams, *(1 for _ in write_n1.shape[2:]))
        return write_n1 * identity(write_n1, streams).view(shape)


@residual("hyper_connections")
class HyperConnections(SublayerBlock):
    """A block between n streams of the model's width."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__(config, number)
        self.around_attention = self._connection(config, 2 * number - 2)
        self.around_ff = self._connection(config, 2 * number - 1)

    @classmethod
    def _connection(cls, config: ModelConfig, sublayer: int) -> Connection:
        streams = config.options.streams
        read_n1 = torch.zeros(streams, 1)
        read_n1[sublayer % streams] = 1.0
        return Connection(read_n1, config.dim, dynamic=config.options.dynamic)

    @classmethod
    def start(cls, x_btd: Tensor, config: ModelConfig) -> Streams:
        """Every stream is the embedding."""
        return Streams([x_btd], torch.ones(config.options.streams, 1, device=x_btd.device))

    @classmethod
    def read_out(cls, config: ModelConfig) -> ReadOut:
        """Reads the mean of the streams."""
        return _Mean()

    @classmethod
    def kept(cls, config: ModelConfig) -> float:
        """Of every sublayer the streams, but for one stream a block; and the weights, dynamic ones
        three times."""
        n = config.options.streams
        weights = 3 * n * (n + 2) if config.options.dynamic else n * (n + 1)
        return config.depth * (2 * n - 1 + 2 * weights / config.dim)

    @classmethod
    def state_rows(cls, config: ModelConfig) -> int:
        """The streams and a sublayer's output."""
        return int(config.options.streams) + 1

    def readings(self, calls: Sequence[Recorded], config: ModelConfig) -> Iterator[Reading]:
        """How each sublayer reads the streams: dynamic weights from its second call of the mixing,
        the first having made the streams."""
        arounds = (self.around_attention, self.around_ff)
        half = len(calls) // 2
        for around, output, first in zip(arounds, SUBLAYERS, (0, half), strict=True):
            read_ni = around.static_nc[:, : around.widths[0]]
            added_in = torch.zeros_like(read_ni.T)
            if around.dynamic_cd is not None:
                added_in = calls[first + 1].added_on
            inputs = len(added_in)
            names = [output] if inputs == 1 else [f"{output} {i}" for i in range(1, inputs + 1)]
            entries = stream_names(len(read_ni))
            yield from readings_of([Recorded(read_ni.T[..., None], added_in)], names, entries)

    def read(self, state: Streams, part: int, norm: nn.RMSNorm) -> tuple[Tensor, Streams]:
        """The sublayer's input after its norm."""
        around: Connection = self.around_ff if part else self.around_attention
        return around(state, norm)

    def write(self, state: Streams, part: int, y_btd: Tensor) -> Streams:
        """With the sublayer's output."""
        return state._replace(rows=[*state.rows, y_btd])


@residual("frac")
class Frac(HyperConnections):
    """A block between m parts of one stream."""

    @classmethod
    def _connection(cls, config: ModelConfig, sublayer: int) -> Connection:
        parts = config.options.parts
        read_nn = identity(torch.zeros(()), parts)
        return Connection(read_nn, config.dim // parts, dynamic=config.options.dynamic)

    @classmethod
    def start(cls, x_btd: Tensor, config: ModelConfig) -> Streams:
        """The parts of the embedding."""
        parts = config.options.parts
        return Streams([*x_btd.chunk(parts, -1)], identity(x_btd, parts))

    @classmethod
    def read_out(cls, config: ModelConfig) -> ReadOut:
        """Reads the parts side by side."""
        return _Whole()

    @classmethod
    def kept(cls, config: ModelConfig) -> float:
        """Of every block three rows: parts side by side, twice, and the stream; and the weights."""
        m = config.options.parts
        weights = 3 * m * (2 * m + 1) if config.options.dynamic else 4 * m * m
        return config.depth * (3 + 2 * weights / config.dim)

    @classmethod
    def state_rows(cls, config: ModelConfig) -> int:
        """The stream and a sublayer's output."""
        return 2

    def write(self, state: Streams, part: int, y_btd: Tensor) -> Streams:
        """With the parts of the sublayer's output."""
        return state._replace(rows=[*state.rows, *y_btd.chunk(len(state.b_nk), -1)])


class _Mean(ReadOut):
    def forward(self, state: Streams, norm: nn.RMSNorm) -> Tensor:
        weights = state.weights_btnk
        mean_bt1k = None if weights is None else weights.mean(2, keepdim=True)
        return read(state.rows, state.b_nk.mean(0, keepdim=True), mean_bt1k, norm)[0]


class _Whole(ReadOut):
    def forward(self, state: Streams, norm: nn.RMSNorm) -> Tensor:
        return read(state.rows, state.b_nk, state.weights_btnk, norm)[0]


def stream_names(count: int) -> list[tuple[str, int]]:
    """Of streams or parts, with their places."""
    return [(f"stream {i + 1}", i) for i in range(count)]


def make(state: Streams) -> list[Tensor]:
    """The streams, each [b, t, d]."""
    return weighted_sums(state.rows, state.weights_btnk, state.b_nk[..., None])[0]


def read(
    rows: list[Tensor],
    b_ok: Tensor,
    weights_btok: Tensor | None,
    norm: nn.RMSNorm,
    *,
    before: int = 0,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """A sublayer's input, of one weighted sum or several parts side by side, after its norm.

    Returns it, [b, t, d], the `before` other sums that come first, and the rows for their next
    reader.
    """
    b_ok1 = b_ok[..., None]
    if len(b_ok) - before > 1:
        sums, _, rows = weighted_sums(rows, weights_btok, b_ok1)
        return normalise(torch.cat(sums[before:], -1), norm)[0], sums[:before], rows
    gains = [*before * [None], norm.weight]
    sums, (normed_btd,), rows = weighted_sums(rows, weights_btok, b_ok1, gains)
    return normed_btd, sums, rows


def identity(like: Tensor, size: int) -> Tensor:
    """The matrix [size, size]; torch.eye on the meta device would import PyTorch's compiler."""
    return like.new_zeros(size, size).fill_diagonal_(1.0)
