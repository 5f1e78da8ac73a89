"""A decoder block: what a residual kind is made of.

A kind says how a block's input is made from what came before, and what carries on: the state. It
is a Block, registered by name in a file of dca/residuals; `standard` is the plainest.

Axes: b batch, t time, d model.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from dca.config import ModelConfig
from dca.layers import Attention, FeedForward
from dca.mix import NORM_EPS


class ReadOut(nn.Module):
    """From the state behind the last block to what the logits read."""

    def forward(self, state: Any, norm: nn.RMSNorm) -> Tensor:
        """The state, here [b, t, d] itself, after the final norm: [b, t, d]."""
        return norm(state)

    def initialise(self, **random: Any) -> None:
        """Draw what is random here; `random` is the generator."""


class Block(nn.Module):
    """Attention and feed-forward, with their norms; a kind adds what is between them.

    The parameters that a kind adds start as the plain transformer, the random ones of them at
    `grn_init_std` = 0: a retrofit relies on it. They are Parameters, not Linear layers, whose
    matrices have the common initialisation and weight decay.
    """

    inputs: ClassVar[int] = 1
    """Norms in front of attention: one for q, k and v alike, or three."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        """Block `number` of the model, from 1."""
        super().__init__()
        self.norms = nn.ModuleList(rms_norm(config) for _ in range(self.inputs))
        self.attention = Attention(config, config.window(number))
        self.norm_ff = rms_norm(config)
        self.ff = FeedForward(config)

    @classmethod
    def start(cls, x_btd: Tensor, config: ModelConfig) -> Any:
        """The state in front of the first block; of tensors, lists and tuples. Here [b, t, d]."""
        return x_btd

    @classmethod
    def read_out(cls, config: ModelConfig) -> ReadOut:
        """What reads the state behind the last block."""
        return ReadOut()

    def advance(self, state: Any, *context: Any) -> Any:
        """The state behind this block; the one given stays as it is, for it may be read again.

        What `forward` does is compiled, and shared by all blocks; what is done here is not.
        `context` is what Attention takes besides its inputs.
        """
        return self(state, *context)

    def initialise(self, **random: Any) -> None:
        """Draw what the kind adds and is random; `random` is the generator."""


def rms_norm(config: ModelConfig) -> nn.RMSNorm:
    """A norm over the features, with a gain."""
    return nn.RMSNorm(config.dim, eps=NORM_EPS)
