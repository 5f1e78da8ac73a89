"""DenseFormer: a block reads a learned average of the states behind all earlier blocks.

Source: Pagliardini et al., "DenseFormer: Enhancing Information Flow in Transformers via Depth
Weighted Averaging" (arXiv 2402.02622). With X_0 the embedding and X_i what block i makes of Y_i-1:

    Y_0 = X_0;  X_i = block_i(Y_i-1);  Y_i = sum_j a_ij X_j, j = 0..i

a_ij are scalars. At the start a_ii = 1 and the others are 0: the plain transformer. The sources are
states, the embedding and all that was added to it; `grn_v1` is the same sum over what the blocks
add.

Fidelity. The paper also has averages after every p-th block and over every k-th state, which cost
less: here p = k = 1, its best. It averages after the last block as well, and so does the read-out
here. Its a have the learning rate of all parameters; so do these.

Axes: b batch, t time, d model, n states, o = 1 output.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dca.block import OUT, Block, Reading, ReadOut, readings_of, state_names
from dca.config import ModelConfig
from dca.mix import Recorded, sum_and_norm, weighted_sums
from dca.registry import residual


class Average(ReadOut):
    """The weighted sum of n states."""

    def __init__(self, states: int) -> None:
        super().__init__()
        a_on1 = torch.zeros(1, states, 1)
        a_on1[:, -1] = 1.0
        self.a_on1 = nn.Parameter(a_on1)

    def combine(
        self, states: list[Tensor], norm: nn.RMSNorm, *, raw: bool
    ) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        """With `raw` the average; the average after its norm; the states, for the next reader."""
        sums, (normed_btd,), states = weighted_sums(
            states, None, self.a_on1, [norm.weight], raw=[raw]
        )
        return sums, normed_btd, states

    def forward(self, state: list[Tensor], norm: nn.RMSNorm) -> Tensor:
        """The average after its norm: [b, t, d]."""
        return self.combine(state, norm, raw=False)[1]

    def readings(self, calls: Sequence[Recorded], config: ModelConfig) -> Iterator[Reading]:
        """The last average's."""
        return readings_of(calls, [OUT], state_names(config.depth + 1))


@residual("denseformer")
class DenseFormer(Block):
    """A block between lists of states, each [b, t, d], oldest first."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__(config, number)
        self.average = Average(number) if number > 1 else None

    @classmethod
    def start(cls, x_btd: Tensor, config: ModelConfig) -> list[Tensor]:
        """The embedding is the first state."""
        return [x_btd]

    @classmethod
    def read_out(cls, config: ModelConfig) -> ReadOut:
        """The average behind the last block."""
        return Average(config.depth + 1)

    @classmethod
    def state_rows(cls, config: ModelConfig) -> int:
        """The states behind the last block."""
        return config.depth + 1

    def advance(self, state: list[Tensor], *context: Any) -> list[Tensor]:
        """Average outside of the compiled part: numbers of states differ and have a kernel."""
        (norm,) = self.norms
        if self.average is None:
            y_btd, normed_btd = sum_and_norm(state, norm)  # type: ignore[arg-type]
        else:
            (y_btd,), normed_btd, state = self.average.combine(state, norm, raw=True)  # type: ignore[arg-type]
        return [*state, self(y_btd, normed_btd, *context)]

    def readings(self, calls: Sequence[Recorded], config: ModelConfig) -> Iterator[Reading]:
        """The average's, except in the first block, which has none."""
        return readings_of(calls if self.average else [], ["all"], state_names(self.number))

    def forward(self, y_btd: Tensor, normed_btd: Tensor, *context: Any) -> Tensor:
        """The average before and after its norm to the state behind this block, all [b, t, d]."""
        h_btd = self.attention([normed_btd], *context)
        stream_btd, normed_btd = sum_and_norm([y_btd, h_btd], self.norm_ff)
        return stream_btd + self.ff(normed_btd)
