"""Hyper-connections: several residual streams, read, written and mixed by learned weights.

Source: Zhu et al., "Hyper-Connections" (arXiv 2409.19606), the dynamic kind. Around each sublayer,
attention or feed-forward, with H the n streams [n, d]:

    h = norm(A_m^T H);  y = sublayer(h);  H' = A_r^T H + B^T y

Each of A_m [n, 1], A_r [n, n], B [1, n] is a static weight plus s * tanh(norm(H) W). As in the
paper the static A_m of sublayer l, from 0, reads stream l mod n, A_r is the identity, B is 1, W is
0 and s is 0.01: all streams are the one of the pre-norm transformer. Where this differs:

- The norm in front of W is an RMSNorm without a gain, which would be a factor of W.
- The read-out is the mean of the streams. The paper sums them; the final norm makes both equal
  except for its epsilon. The mean is exactly the transformer's stream.

Axes: b batch, t time, d model, n streams, c weights of a stream (1 to read, n to mix, 1 to write).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dca.block import Block, ReadOut
from dca.config import ModelConfig
from dca.mix import NORM_EPS
from dca.options import Annotated, Range, options
from dca.registry import residual


@options
class Options:
    """Of hyper_connections."""

    streams: Annotated[int, Range(ge=1)] = 4
    """Residual streams."""


START_SCALE = 0.01
"""s at the start, as in the paper."""


class Connection(nn.Module):
    """The connections around one sublayer; they hold all parameters that the kind adds."""

    def __init__(self, config: ModelConfig, sublayer: int) -> None:
        super().__init__()
        n = config.options.streams
        static_nc = torch.zeros(n, n + 2)
        static_nc[sublayer % n, 0] = 1.0
        static_nc[:, 1:-1].fill_diagonal_(1.0)  # torch.eye on the meta device imports the compiler
        static_nc[:, -1] = 1.0
        self.static_nc = nn.Parameter(static_nc)
        self.dynamic_cd = nn.Parameter(torch.zeros(n + 2, config.dim))
        self.scale_c = nn.Parameter(torch.full((3,), START_SCALE))
        self.widths = (1, n, 1)

    def forward(self, streams_btnd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sublayer's input [b, t, d], the mixed streams, and the write weights [b, t, n, 1]."""
        normed_btnd = F.rms_norm(streams_btnd, streams_btnd.shape[-1:], eps=NORM_EPS)
        scale_c = torch.cat([s.expand(w) for s, w in zip(self.scale_c, self.widths, strict=True)])
        dynamic_btnc = scale_c * F.linear(normed_btnd, self.dynamic_cd).tanh()
        weights_btnc = (self.static_nc + dynamic_btnc).to(streams_btnd.dtype)
        read_btnc1, write_btn1 = weights_btnc[..., :-1, None], weights_btnc[..., -1:]
        # stream by stream: a matrix product would be rounded to bfloat16 under autocast
        first_btd, *others = streams_btnd.unbind(2)
        mixed_btcd = read_btnc1[:, :, 0] * first_btd[:, :, None]
        for i, stream_btd in enumerate(others, 1):
            mixed_btcd = torch.addcmul(mixed_btcd, read_btnc1[:, :, i], stream_btd[:, :, None])
        return mixed_btcd[:, :, 0], mixed_btcd[:, :, 1:], write_btn1


@residual("hyper_connections")
class HyperConnections(Block):
    """A block between streams [b, t, n, d]; n is the option `streams`."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__(config, number)
        self.around_attention = Connection(config, 2 * number - 2)
        self.around_ff = Connection(config, 2 * number - 1)

    @classmethod
    def start(cls, x_btd: Tensor, config: ModelConfig) -> Tensor:
        """Every stream is the embedding."""
        return x_btd[:, :, None].expand(-1, -1, config.options.streams, -1)

    @classmethod
    def read_out(cls, config: ModelConfig) -> ReadOut:
        """Reads the mean of the streams."""
        return _Mean()

    @classmethod
    def kept(cls, config: ModelConfig) -> float:
        """Of every block its streams, around both sublayers."""
        return config.depth * 8.0 * config.options.streams

    @classmethod
    def state_rows(cls, config: ModelConfig) -> int:
        """The streams."""
        return int(config.options.streams)

    def forward(self, streams_btnd: Tensor, *context: Any) -> Tensor:
        """[b, t, n, d] to [b, t, n, d]."""
        (norm,) = self.norms
        x_btd, streams_btnd, write_btn1 = self.around_attention(streams_btnd)
        y_btd = self.attention([norm(x_btd)], *context)
        streams_btnd = streams_btnd + write_btn1 * y_btd[:, :, None]
        x_btd, streams_btnd, write_btn1 = self.around_ff(streams_btnd)
        return streams_btnd + write_btn1 * self.ff(self.norm_ff(x_btd))[:, :, None]


class _Mean(ReadOut):
    def forward(self, state: Tensor, norm: nn.RMSNorm) -> Tensor:
        return norm(state.mean(2))
