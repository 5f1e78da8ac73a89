"""Rotary positions, attention with separate query, key and value inputs, feed-forward.

Axes: b batch, t time, d model, h heads, e features of a head, f hidden features.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from dca.config import ModelConfig


def rotary_table(x_btd: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [t, e/2] of RoFormer (arXiv 2104.09864), base 10,000.

    In float32 at least: bfloat16 cannot tell the positions of a long text apart.
    """
    dtype = torch.promote_types(torch.float32, x_btd.dtype)
    pairs = torch.arange(0, head_dim, 2, device=x_btd.device, dtype=dtype)
    position = torch.arange(x_btd.shape[1], device=x_btd.device, dtype=dtype)
    angle = torch.outer(position, 10_000.0 ** (-pairs / head_dim))
    return angle.cos(), angle.sin()


def rotate(x_bhte: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pair (e, e + half) of each position by its angle."""
    cos_te, sin_te = (part.to(x_bhte.dtype) for part in table)
    left, right = x_bhte.chunk(2, dim=-1)
    return torch.cat([left * cos_te - right * sin_te, right * cos_te + left * sin_te], dim=-1)


class Attention(nn.Module):
    """Causal multi-head attention; queries, keys and values may read different inputs."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, inputs: tuple[Tensor, ...], table: tuple[Tensor, Tensor]) -> Tensor:
        """Inputs are (x,) for all three or (q, k, v), each [b, t, d]; returns [b, t, d]."""
        if len(inputs) == 1:
            parts = self.qkv(inputs[0]).chunk(3, dim=-1)
        else:
            weights = self.qkv.weight.chunk(3)
            parts = tuple(F.linear(x, w) for x, w in zip(inputs, weights, strict=True))
        q, k, v = (rearrange(x, "b t (h e) -> b h t e", h=self.heads) for x in parts)
        mixed = F.scaled_dot_product_attention(
            rotate(q, table), rotate(k, table), v, is_causal=True
        )
        return self.out(rearrange(mixed, "b h t e -> b t (h e)"))


class FeedForward(nn.Module):
    """Two matrices with a GELU between them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, config.ff_mult * config.dim, bias=False)
        self.down = nn.Linear(config.ff_mult * config.dim, config.dim, bias=False)

    def forward(self, x_btd: Tensor) -> Tensor:
        """[b, t, d] to [b, t, d]."""
        return self.down(F.gelu(self.up(x_btd)))
