"""The decoder-only language model, with blocks of the configured residual kind.

Axes: b batch, t time, d model, v vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import config as compiler
from torch.nn import functional as F

from dca import registry
from dca.block import Block, rms_norm
from dca.config import ModelConfig
from dca.layers import KeyValues, project, rotary_table
from dca.model import LanguageModel


class Cache:
    """Keys and values of the text read so far, to continue it: see `LanguageModel.forward`."""

    def __init__(self, config: ModelConfig, like: Tensor, *, batch: int, capacity: int) -> None:
        """For up to `capacity` positions; a windowed block stores its window only."""
        self.length = 0
        self.table = rotary_table(like, capacity, config.head_dim)
        windows = [config.window(t) or capacity for t in range(1, config.depth + 1)]
        self.layers = [
            KeyValues(like, (batch, config.groups, min(window, capacity), config.head_dim))
            for window in windows
        ]
        self.batch, self.capacity = batch, capacity

    def check(self, batch: int, length: int) -> None:
        """Raise ValueError unless [batch, length] more ids can follow."""
        if batch != self.batch:
            raise ValueError(f"ids: expected a batch of {self.batch}, the cache's, got {batch}")
        if self.length and length != 1:
            raise ValueError(f"ids: expected one position after the prompt, got {length}")
        if self.length + length > self.capacity:
            raise ValueError(
                f"ids: expected room for {length} positions after {self.length}, "
                f"but the cache was made for {self.capacity}"
            )


@registry.architecture("gpt")
class GPT(LanguageModel):
    """Embedding, blocks, read-out, norm, logits; the kind defines the state between blocks."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.kind: type[Block] = registry.residual[config.residual]
        self.embed = nn.Embedding(config.vocab, config.dim)
        self.blocks = nn.ModuleList(self.kind(config, t) for t in range(1, config.depth + 1))
        self.mix = self.kind.read_out(config)
        self.norm = rms_norm(config)
        self.head: nn.Linear | None = None
        if not config.tied_embeddings:
            self.head = nn.Linear(config.dim, config.vocab, bias=False)

    def forward(self, ids_bt: Tensor, cache: Cache | None = None) -> Tensor:
        """As in LanguageModel; the mixing of a position depends on no other position."""
        config, (batch, length) = self.config, ids_bt.shape
        start = cache.length if cache else 0
        if cache is None:
            table = rotary_table(self.embed.weight, length, config.head_dim)
        else:
            cache.check(batch, length)
            table = cache.table[:, start : start + length]
        x_btd = self.embed(ids_bt)
        if config.dropout and self.training:
            x_btd = F.dropout(x_btd, config.dropout)
        state = self.kind.start(x_btd, config)
        for index, block in enumerate(self.blocks):
            context = (table, cache.layers[index], start) if cache else (table,)
            state = self.run(block.advance, state, *context)  # type: ignore[arg-type]
        normed_btd = self.mix(state, self.norm)
        if cache:
            cache.length += length
        if self.head is None:
            logits_btv = project(_head_std(config) * normed_btd, self.embed.weight)
        else:
            logits_btv = project(normed_btd, self.head.weight)
        cap = config.logit_softcap
        return logits_btv if cap is None else cap * (logits_btv / cap).tanh()

    def new_cache(self, *, batch: int, capacity: int) -> Cache:
        """An empty cache for texts of up to `capacity` positions."""
        return Cache(self.config, self.embed.weight, batch=batch, capacity=capacity)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the blocks, which share one program; the mixing between them has a kernel.

        The time to compile does not grow with the depth.
        """
        # one program per window, for training and for evaluation: more than the compiler's default
        # limit, beyond which it runs uncompiled without an error
        limit = 4 * len(set(self.config.attention_windows)) + 4
        compiler.recompile_limit = max(limit, compiler.recompile_limit)
        for block in self.blocks:
            block.compile(*args, **kwargs)

    def initialise(self, generator: torch.Generator | None) -> None:
        """Draw matrices that preserve the variance of their input.

        Those that write to the stream are smaller by sqrt(2 * depth), so that its variance does not
        grow with depth, or zero. With the same generator state every residual kind has the same
        matrices: its additional parameters are drawn last.
        """
        config = self.config
        read, write = config.dim**-0.5, (2 * config.depth * config.dim) ** -0.5
        if config.zero_init:
            write = 0.0
        std = {
            "embed": 1.0,
            "qkv": read,
            "out": write,
            "up": read,
            "down": write * (config.ff_dim / config.dim) ** -0.5,
            "head": _head_std(config),
        }
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                kind = name.rpartition(".")[2]
                nn.init.normal_(module.weight, std=std[kind], generator=generator)
        for part in (*self.blocks, self.mix):
            part.initialise(generator=generator)


def _head_std(config: ModelConfig) -> float:
    """Standard deviation of the head; with tied embeddings, of std 1, the factor of the logits."""
    return 0.5 * config.dim**-0.5
