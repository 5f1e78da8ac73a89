"""A plain transformer and its training as a short script has them: what quality.py compares with.

Axes: b batch, t time, d model, h heads, c features of a head, v vocabulary, p parts of a turn.
"""

import math
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dca import ModelConfig
from pipelines.data.batches import Batches, Bytes
from pipelines.training.config import TrainConfig
from pipelines.training.evaluation import bits_per_byte
from pipelines.training.schedule import learning_rate_at


class Point(NamedTuple):
    """One evaluation of a training."""

    tokens: int
    seconds: float
    """Of training, without the evaluations."""
    bits: float
    """Bits per byte of the validation split."""


class Block(nn.Module):
    """Attention and a feed-forward layer, each after a norm and added to the stream."""

    def __init__(self, dim: int, heads: int, ff_mult: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(dim, bias=False), nn.LayerNorm(dim, bias=False)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.up = nn.Linear(dim, ff_mult * dim, bias=False)
        self.down = nn.Linear(ff_mult * dim, dim, bias=False)

    def forward(self, x_btd: Tensor, turns_ptc: Tensor) -> Tensor:
        """The stream after the block."""
        qkv = self.qkv(self.norm_1(x_btd)).chunk(3, dim=-1)
        q_bhtc, k_bhtc, v_bhtc = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in qkv)
        q_bhtc, k_bhtc = turned(q_bhtc, turns_ptc), turned(k_bhtc, turns_ptc)
        mixed_bhtc = F.scaled_dot_product_attention(q_bhtc, k_bhtc, v_bhtc, is_causal=True)
        x_btd = x_btd + self.out(mixed_bhtc.transpose(1, 2).flatten(2))
        return x_btd + self.down(F.gelu(self.up(self.norm_2(x_btd))))


def turned(x_bhtc: Tensor, turns_ptc: Tensor) -> Tensor:
    """Rotary positions: pairs of features turned by angles that grow with the position."""
    (cos_tc, sin_tc), (one, other) = turns_ptc, x_bhtc.chunk(2, dim=-1)
    return torch.cat([one * cos_tc - other * sin_tc, one * sin_tc + other * cos_tc], dim=-1)


class GPT(nn.Module):
    """Blocks between an embedding and a head that is the embedding's matrix."""

    def __init__(self, config: ModelConfig, seq_len: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab, config.dim)
        speeds_c = 10_000 ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
        angles_tc = torch.arange(seq_len)[:, None] * speeds_c
        self.register_buffer("turns_ptc", torch.stack([angles_tc.cos(), angles_tc.sin()]))
        shape = (config.dim, config.heads, config.ff_mult)
        self.blocks = nn.ModuleList(Block(*shape) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, bias=False)
        for name, weight in self.named_parameters():
            into_stream = name.endswith(("out.weight", "down.weight"))
            if weight.dim() > 1:
                scale = math.sqrt(config.dim) * math.sqrt(2 * config.depth) ** into_stream
                nn.init.normal_(weight, std=1 / scale)

    def forward(self, ids_bt: Tensor) -> Tensor:
        """The logits of each next byte, [b, t, v]."""
        x_btd, turns_ptc = self.embedding(ids_bt), self.get_buffer("turns_ptc")
        for block in self.blocks:
            x_btd = block(x_btd, turns_ptc[:, : ids_bt.shape[1]])
        return F.linear(self.norm(x_btd), self.embedding.weight)


def train(model: nn.Module, config: TrainConfig, batches: Batches, val: Bytes) -> Iterator[Point]:
    """Train any model from ids to logits with AdamW in float32, and evaluate it."""
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    others = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups: list[Any] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    optimizer = torch.optim.AdamW(groups, betas=betas, weight_decay=decay, fused=True)
    seconds = 0.0
    for first, end in pairwise([0, *config.eval_steps]):
        started = time.perf_counter()
        for step in range(first, end):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, config)
            ids_bt = torch.from_numpy(batches(step)).long()
            logits_btv = model(ids_bt[:, :-1])
            F.cross_entropy(logits_btv.flatten(0, 1), ids_bt[:, 1:].flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
        seconds += time.perf_counter() - started
        bits = bits_per_byte(model, val, seq_len=config.seq_len, tokens=config.eval_tokens)
        yield Point(end * config.batch_tokens, seconds, bits)
