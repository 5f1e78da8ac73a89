"""Value residual: the first layer's values are added to every layer's.

Source: Zhou et al., "Value Residual Learning" (arXiv 2410.17897), with two learnable scalars per
layer: V'_l = a_l V_1 + b_l V_l. The paper starts at a = b = 1/2; here a = 0, b = 1, the plain
transformer, so that a trained one can be retrofitted. The first block has no scalars.

Axes: b batch, t time, d model, h heads, e features of a head.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dca.block import Block, Reading, ReadOut, fixed_readings
from dca.config import ModelConfig
from dca.mix import Recorded, sum_and_norm
from dca.registry import residual

State = tuple[Tensor, Tensor | None]
"""The residual stream [b, t, d], and the first block's values [b, h, t, e] once there are any."""


@residual("value_residual")
class ValueResidual(Block):
    """The pre-norm transformer except for the values of attention."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__(config, number)
        self.shares = nn.Parameter(torch.tensor([0.0, 1.0])) if number > 1 else None

    @classmethod
    def start(cls, x_btd: Tensor, config: ModelConfig) -> State:
        """The stream, without values of a first block."""
        return x_btd, None

    @classmethod
    def read_out(cls, config: ModelConfig) -> ReadOut:
        """Reads the stream."""
        return ReadStream()

    def readings(self, calls: Sequence[Recorded], config: ModelConfig) -> Iterator[Reading]:
        """The shares, except in the first block, which has none."""
        shares = [] if self.shares is None else [*self.shares]
        return fixed_readings("v", ["block 1", "own"][: len(shares)], shares)

    def forward(self, state: State, *context: Any) -> State:
        """Stream and first values to the same."""
        (norm,) = self.norms
        x_btd, first_bhte = state
        x_btd, normed_btd = sum_and_norm([x_btd], norm)  # type: ignore[arg-type]
        q_bhte, k_bhte, v_bhte = self.attention.split([normed_btd])
        if self.shares is None or first_bhte is None:
            first_bhte = v_bhte
        else:
            first, own = self.shares.unbind()
            v_bhte = first * first_bhte + own * v_bhte
        h_btd = self.attention.attend(q_bhte, k_bhte, v_bhte, *context)
        stream_btd, normed_btd = sum_and_norm([x_btd, h_btd], self.norm_ff)
        return stream_btd + self.ff(normed_btd), first_bhte


class ReadStream(ReadOut):
    """Reads the first part of the state, [b, t, d]."""

    def forward(self, state: tuple[Tensor, Any], norm: nn.RMSNorm) -> Tensor:
        """[b, t, d] after the norm."""
        return norm(state[0])
