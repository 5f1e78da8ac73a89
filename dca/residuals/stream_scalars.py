"""Stream scalars: in front of each block the stream is scaled and the embedding is added again.

    x <- r_l x + e_l x_0;  h = attention(norm(x));  y = x + h + ff(norm_ff(x + h))

with x_0 the embedding and r_l, e_l two scalars of each block; r = 1 and e = 0 at the start: the
plain transformer.

Source: the public record attempts of small GPTs, such as github.com/KellerJordan/modded-nanogpt
and github.com/karpathy/nanochat (resid_lambdas, x0_lambdas).

Fidelity. There is no paper. The records train e with a hundred times the learning rate of r: a
change of r in every block multiplies up over the depth. Here the two rates are options with that
ratio; their common level is this project's choice and was not compared. The first block has both
scalars, of which only the sum r + e has an effect. The read-out has none.

Axes: b batch, t time, d model.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dca.block import Block, Reading, ReadOut, fixed_readings
from dca.config import ModelConfig
from dca.mix import Recorded, sum_and_norm, weighted_sums
from dca.options import Annotated, Range, options
from dca.registry import residual


@options
class Options:
    """Of stream_scalars."""

    r_rate: Annotated[float, Range(gt=0)] = 0.1
    """Learning rate of r, the factors of the stream, in multiples of train.learning_rate."""
    e_rate: Annotated[float, Range(gt=0)] = 10.0
    """The same for e, the factors of the embedding."""


class Stream(NamedTuple):
    """The residual stream, as terms whose sum it is, and the embedding; each [b, t, d]."""

    terms: list[Tensor]
    first_btd: Tensor


@residual("stream_scalars")
class StreamScalars(Block):
    """The pre-norm transformer except for what it reads."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__(config, number)
        self.r = nn.Parameter(torch.ones(1))
        self.e = nn.Parameter(torch.zeros(1))

    @classmethod
    def start(cls, x_btd: Tensor, config: ModelConfig) -> Stream:
        """The embedding is the stream."""
        return Stream([x_btd], x_btd)

    @classmethod
    def read_out(cls, config: ModelConfig) -> ReadOut:
        """Reads the stream."""
        return _Sum()

    @classmethod
    def learning_rates(cls, config: ModelConfig) -> dict[str, float]:
        """Of r and e."""
        return {"r": config.options.r_rate, "e": config.options.e_rate}

    @classmethod
    def kept(cls, config: ModelConfig) -> float:
        """Of every block one more row: the scaled stream."""
        return float(config.depth)

    @classmethod
    def state_rows(cls, config: ModelConfig) -> int:
        """Two terms and the embedding."""
        return 3

    def readings(self, calls: Sequence[Recorded], config: ModelConfig) -> Iterator[Reading]:
        """r and e."""
        (r,), (e,) = self.r, self.e
        return fixed_readings("all", ["stream", "embedding"], [r, e])

    def advance(self, state: Stream, *context: Any) -> Stream:
        """Scale outside of the compiled part: it has a kernel."""
        (norm,) = self.norms
        scalars = torch.cat([self.r.expand(len(state.terms)), self.e])
        (x_btd,), (normed_btd,), (*_, first_btd) = weighted_sums(
            [*state.terms, state.first_btd],
            None,
            scalars[None, :, None],
            [norm.weight],  # type: ignore[list-item]
            raw=[True],
        )
        return Stream(self(x_btd, normed_btd, *context), first_btd)

    def forward(self, x_btd: Tensor, normed_btd: Tensor, *context: Any) -> list[Tensor]:
        """The stream before and after its norm to the terms of the next one, all [b, t, d]."""
        h_btd = self.attention([normed_btd], *context)
        stream_btd, normed_btd = sum_and_norm([x_btd, h_btd], self.norm_ff)
        return [stream_btd, self.ff(normed_btd)]


class _Sum(ReadOut):
    def forward(self, state: Stream, norm: nn.RMSNorm) -> Tensor:
        return sum_and_norm(state.terms, norm)[1]
