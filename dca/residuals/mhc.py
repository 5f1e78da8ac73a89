"""Manifold-constrained hyper-connections: streams that are mixed by doubly stochastic matrices.

Source: Xie et al., "mHC: Manifold-Constrained Hyper-Connections" (arXiv 2512.24880). Around each
sublayer, with H the n streams and vec H all their n d features side by side,

    z = alpha * (phi vec H) / rms(vec H) + bias, in three groups, each with an alpha of its own
    pre = sigmoid(z_pre);  post = 2 sigmoid(z_post);  M = Sinkhorn(z_mix)
    y = sublayer(norm(sum_i pre_i H_i));  H'_k = sum_j M_jk H_j + post_k y

Sinkhorn makes a matrix with positive entries whose rows and columns sum to 1: a softmax of the rows
and 20 normalisations of columns and rows in turn. Behind the last block a sum with weights
sigmoid(alpha * (phi vec H) / rms(vec H) + bias) is read. alpha starts at 0.01.

Fidelity. How phi and bias start is not published. `start` has two choices:

- identity: as hyper-connections start. phi is 0; pre reads stream l mod n in sublayer l, but for
  a tenth, of the others together; M is the identity, but for 3e-4 in each other entry; post is 1;
  the read-out is the mean. All streams are then the one of the pre-norm transformer, exactly.
- uniform: phi ~ N(0, 0.02^2), M is 1 / n everywhere, pre 1 / n, post 1. Others' code starts so
  (with pre 1 / 2, which is the same behind a norm). It mixes the streams evenly in every sublayer,
  which erases their differences, and it starts near the transformer, not as it.

In front of the first sublayer the streams are equal, and it has post only, which reads one of them.
A result names its start. `mix: identity` leaves the mixing out, M = I: others saw it settle there.
The softmax has 1e-6 added, as in the authors' inference code, so that no sum is 0; the last
normalisation is of columns, so that equal streams stay as they are.

Axes: b batch, t time, d model, n streams (j before, k after), c logits of one sublayer.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dca import kernels
from dca.block import OUT, SUBLAYERS, Reading, ReadOut, SublayerBlock, normalise, readings_of
from dca.config import ModelConfig
from dca.layers import row_products
from dca.mix import NORM_EPS, Recorded, weighted_sums
from dca.options import Annotated, Range, options
from dca.registry import residual
from dca.residuals.hyper_connections import Streams, identity, make, stream_names

START_ALPHA, START_STD = 0.01, 0.02
READ_OTHERS = 0.1
"""Of the start `identity`: what the streams that a sublayer does not read weigh together."""
MIX_BIAS = 8.0
"""Of the start `identity`: bias of the diagonal of the mixing."""
SINKHORN_DIVISIONS, SINKHORN_EPS = 39, 1e-6


@options
class Options:
    """Of mhc."""

    streams: Annotated[int, Range(ge=2, le=64)] = 4
    """Residual streams."""
    start: Literal["uniform", "identity"] = "identity"
    """How the mixing starts: evenly, as in others' code, or as the identity, which is exactly the
    plain transformer."""
    mix: Literal["sinkhorn", "identity"] = "sinkhorn"
    """Whether the streams are mixed, by doubly stochastic matrices, or each goes on as it is."""


class Gates(nn.Module):
    """Logits z, in groups with an alpha each, from all features of some streams."""

    def __init__(self, config: ModelConfig, streams: int, *biases: Tensor) -> None:
        """One group for each vector of biases, the start of the bias."""
        super().__init__()
        self.widths = [len(bias) for bias in biases]
        self.std = START_STD if config.options.start == "uniform" else 0.0
        self.phi_cnd = nn.Parameter(torch.zeros(sum(self.widths), streams, config.dim))
        bias_c = torch.zeros(sum(self.widths))
        for part, bias in zip(bias_c.split(self.widths), biases, strict=True):
            part.copy_(bias)  # torch.cat on the meta device would import PyTorch's compiler
        self.bias_c = nn.Parameter(bias_c)
        self.alpha = nn.Parameter(torch.full((len(biases),), START_ALPHA))

    def forward(self, streams: list[Tensor]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """The logits of each group, [c, b, t], and the streams for their next reader."""
        found = [
            row_products(stream_btd, phi_cd)
            for stream_btd, phi_cd in zip(streams, self.phi_cnd.unbind(1), strict=True)
        ]
        products, squares, streams = ([*values] for values in zip(*found, strict=True))
        square_bt = torch.stack(squares).mean(0)
        alphas = zip(self.alpha, self.widths, strict=True)
        alpha_c = torch.cat([alpha.expand(width) for alpha, width in alphas])
        scaled_cbt = torch.stack(products).sum(0) * torch.rsqrt(square_bt + NORM_EPS)
        logits_cbt = alpha_c[:, None, None] * scaled_cbt + self.bias_c[:, None, None]
        return logits_cbt.split(self.widths), streams

    def initialise(self, **random: Any) -> None:
        """Draw phi."""
        if self.std:
            nn.init.normal_(self.phi_cnd, std=self.std, **random)


@residual("mhc")
class MHC(SublayerBlock):
    """A block between n streams."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__(config, number)
        self.mixed = config.options.mix == "sinkhorn"
        self.around_attention = _connection(config, 2 * number - 2)
        self.around_ff = _connection(config, 2 * number - 1)

    @classmethod
    def start(cls, x_btd: Tensor, config: ModelConfig) -> Streams:
        """Every stream is the embedding."""
        return Streams([x_btd], torch.ones(config.options.streams, 1, device=x_btd.device))

    @classmethod
    def read_out(cls, config: ModelConfig) -> ReadOut:
        """Reads a weighted sum of the streams."""
        return _Head(config)

    @classmethod
    def plain_start(cls, config: ModelConfig) -> ModelConfig:
        """With the start `identity`."""
        return config.with_options(start="identity")

    @classmethod
    def kept(cls, config: ModelConfig) -> float:
        """As of hyper-connections: the streams of every sublayer, gates and weights."""
        n = config.options.streams
        gates = 2 * n + (n * n if config.options.mix == "sinkhorn" else 0)
        numbers = 3.5 * gates + n * (n + 1)
        return config.depth * (2 * n - 1 + 2 * numbers / config.dim) + n

    @classmethod
    def state_rows(cls, config: ModelConfig) -> int:
        """The streams and a sublayer's output."""
        return int(config.options.streams) + 1

    def readings(self, calls: Sequence[Recorded], config: ModelConfig) -> Iterator[Reading]:
        """How each sublayer reads the streams: the calls with one output, of which the model's
        first reads the one row that all streams are."""
        reads = [call for call in calls if len(call.b_ond) == 1]
        for call, output in zip(reads, SUBLAYERS, strict=True):
            yield from readings_of([call], [output], stream_names(call.b_ond.shape[1]))

    def read(self, state: Streams, part: int, norm: nn.RMSNorm) -> tuple[Tensor, Streams]:
        """The weighted sum of the streams after the norm."""
        gates: Gates = self.around_ff if part else self.around_attention
        n = len(state.b_nk)
        if self.number == 1 and part == 0:  # the streams are one row
            (post_nbt,), (x_btd,) = gates(state.rows)
            normed_btd, x_btd = normalise(x_btd, norm)
            return normed_btd, _written([x_btd], state.b_nk, None, post_nbt)
        (pre_nbt, post_nbt, *mix_cbt), streams = gates(make(state))
        normed_btd, streams = _read(streams, pre_nbt, norm)
        if not self.mixed:
            return normed_btd, _written(streams, identity(state.b_nk, n), None, post_nbt)
        mix_jkbt = doubly_stochastic(mix_cbt[0].unflatten(0, (n, n)))
        return normed_btd, _written(streams, state.b_nk.new_zeros(n, n), mix_jkbt, post_nbt)

    def write(self, state: Streams, part: int, y_btd: Tensor) -> Streams:
        """With the sublayer's output."""
        return state._replace(rows=[*state.rows, y_btd])

    def initialise(self, **random: Any) -> None:
        """Draw phi."""
        self.around_attention.initialise(**random)
        self.around_ff.initialise(**random)


class _Head(ReadOut):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        streams = config.options.streams
        self.gates = Gates(config, streams, _mean_bias(streams))

    def forward(self, state: Streams, norm: nn.RMSNorm) -> Tensor:
        (pre_nbt,), streams = self.gates(make(state))
        return _read(streams, pre_nbt, norm)[0]

    def readings(self, calls: Sequence[Recorded], config: ModelConfig) -> Iterator[Reading]:
        return readings_of(calls[1:], [OUT], stream_names(config.options.streams))

    def initialise(self, **random: Any) -> None:
        self.gates.initialise(**random)


def doubly_stochastic(logits_jkbt: Tensor) -> Tensor:
    """Matrices [n, n, b, t] with columns (j) that sum to 1, and rows (k) that nearly do."""
    m_jkbt = logits_jkbt.softmax(1) + SINKHORN_EPS
    return _divided(m_jkbt) if torch.compiler.is_compiling() else _Sinkhorn.apply(m_jkbt)


class _Sinkhorn(torch.autograd.Function):
    """`_divided`, of whose steps nothing is kept: the backward pass computes them again."""

    @staticmethod
    def forward(ctx: Any, m_jkbt: Tensor) -> Tensor:
        ctx.save_for_backward(m_jkbt)
        m_jkn = m_jkbt.flatten(2)
        if not kernels.fits(m_jkn):
            return _divided(m_jkbt)
        return kernels.sinkhorn(m_jkn, SINKHORN_DIVISIONS).view_as(m_jkbt)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (m_jkbt,) = ctx.saved_tensors
        m_jkn = m_jkbt.flatten(2)
        if kernels.fits(m_jkn):
            return kernels.sinkhorn(m_jkn, SINKHORN_DIVISIONS, gradient.flatten(2)).view_as(m_jkbt)
        steps: list[tuple[Tensor, Tensor]] = []
        _divided(m_jkbt, steps)
        for at, (quotient_jkbt, sums) in reversed([*enumerate(steps)]):
            common = (gradient * quotient_jkbt).sum(at % 2, keepdim=True)
            gradient = (gradient - common) / sums
        return gradient


def _divided(m_jkbt: Tensor, steps: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
    """Divided by the sums of columns and of rows in turn, of columns first and last.

    `steps` gets the quotients and the sums of each division.
    """
    for step in range(SINKHORN_DIVISIONS):
        sums = m_jkbt.sum(step % 2, keepdim=True)
        m_jkbt = m_jkbt / sums
        if steps is not None:
            steps.append((m_jkbt, sums))
    return m_jkbt


def _read(streams: list[Tensor], pre_nbt: Tensor, norm: nn.RMSNorm) -> tuple[Tensor, list[Tensor]]:
    """The sum with weights sigmoid(pre) after the norm, and the streams for the next reader."""
    weights_bt1n = pre_nbt.sigmoid().permute(1, 2, 0)[:, :, None]
    _, (normed_btd,), streams = weighted_sums(streams, weights_bt1n, None, [norm.weight])
    return normed_btd, streams


def _written(
    rows: list[Tensor], b_nj: Tensor, mix_jkbt: Tensor | None, post_nbt: Tensor
) -> Streams:
    """The streams behind a sublayer: of rows, statically or by M, and, 2 sigmoid(post) times, of
    its output, which is not among the rows yet."""
    written_1kbt = 2 * post_nbt.sigmoid()[None]
    if mix_jkbt is None:
        mix_jkbt = written_1kbt.new_zeros(len(rows), *post_nbt.shape)
    weights_btkj = torch.cat([mix_jkbt, written_1kbt]).permute(2, 3, 1, 0)
    return Streams(rows, F.pad(b_nj, (0, 1)), weights_btkj)


def _connection(config: ModelConfig, sublayer: int) -> Gates:
    """The gates around sublayer `sublayer` of the model, from 0."""
    streams, options = config.options.streams, config.options
    if sublayer == 0:
        return Gates(config, 1, torch.zeros(streams))
    pre_n, mix_nn = _mean_bias(streams), torch.zeros(streams, streams)
    if options.start == "identity":
        pre_n[:] = _logit(READ_OTHERS / (streams - 1))
        pre_n[sublayer % streams] = _logit(1 - READ_OTHERS)
        mix_nn.fill_diagonal_(MIX_BIAS)
    groups = [pre_n, torch.zeros(streams)]
    return Gates(
        config, streams, *groups, *([mix_nn.flatten()] if options.mix == "sinkhorn" else [])
    )


def _mean_bias(streams: int) -> Tensor:
    """Biases whose sigmoids are 1 / n."""
    return torch.full((streams,), _logit(1 / streams))


def _logit(share: float) -> float:
    return math.log(share / (1 - share))
