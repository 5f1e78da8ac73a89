"""The pre-norm transformer: the state is the sum of everything before. Axes: b, t, d model."""

from typing import Any

from torch import Tensor

from dca.block import Block
from dca.mix import sum_and_norm
from dca.registry import residual


@residual("standard")
class Standard(Block):
    """h = attention(norm(x));  y = x + h + ff(norm_ff(x + h))."""

    def forward(self, x_btd: Tensor, *context: Any) -> Tensor:
        """[b, t, d] to [b, t, d]."""
        (norm,) = self.norms
        x_btd, normed_btd = sum_and_norm([x_btd], norm)  # type: ignore[arg-type]
        h_btd = self.attention([normed_btd], *context)
        stream_btd, normed_btd = sum_and_norm([x_btd, h_btd], self.norm_ff)
        return stream_btd + self.ff(normed_btd)
