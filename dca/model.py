"""The language model: bytes in, logits out, with the residual kind chosen by the configuration.

Axes: b batch, t time, d model, v vocabulary.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dca.config import ModelConfig
from dca.grn import GRN, Stack
from dca.layers import Attention, FeedForward, KeyValues, project, rotary_table
from dca.mix import NORM_EPS, sum_and_norm


class Block(nn.Module):
    """One decoder block. Its output is the delta f_t(g_t), to which only `standard` adds its input.

    h = attention(norm_q(q), norm_k(k), norm_v(v));  y = h + ff(norm_ff(h + q)), where the skip q is
    the un-normalised query input (paper, section 3.2).
    """

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()
        self.mix = _mixer(config, number, config.streams)
        self.norms = nn.ModuleList(_norm(config) for _ in range(config.streams))
        self.attention = Attention(config, config.window(number))
        self.norm_ff = _norm(config)
        self.ff = FeedForward(config)

    def forward(self, skip_btd: Tensor, normed: list[Tensor], *context: Any) -> Tensor:
        """The skip and the normed inputs, [b, t, d], to this block's output [b, t, d].

        Without a mixture, `normed` is empty and the output is the residual stream's next state.
        `context` is what Attention takes besides its inputs.
        """
        if not normed:
            (norm,) = self.norms
            skip_btd, normed_btd = sum_and_norm([skip_btd], norm)  # type: ignore[arg-type]
            normed = [normed_btd]
        h_btd = self.attention(normed, *context)
        stream_btd, normed_btd = sum_and_norm([skip_btd, h_btd], self.norm_ff)
        return (h_btd if self.mix else stream_btd) + self.ff(normed_btd)


class Cache:
    """What a model keeps of the text it has read, to continue it: see `LanguageModel.forward`."""

    def __init__(self, config: ModelConfig, like: Tensor, *, batch: int, capacity: int) -> None:
        """Room for `capacity` positions; a windowed block keeps its window only."""
        self.length = 0
        head_dim = config.dim // config.heads
        self.table = rotary_table(like, capacity, head_dim)
        windows = [config.window(t) or capacity for t in range(1, config.depth + 1)]
        self.layers = [
            KeyValues(like, (batch, config.heads, min(window, capacity), head_dim))
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


class LanguageModel(nn.Module):
    """`ids_bt` (integers below vocab) to `logits_btv`; position t sees the ids up to t."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab, config.dim)
        self.blocks = nn.ModuleList(Block(config, t) for t in range(1, config.depth + 1))
        self.mix = _mixer(config, config.depth + 1, 1)
        self.norm = _norm(config)
        self.head = nn.Linear(config.dim, config.vocab, bias=False)

    def forward(self, ids_bt: Tensor, cache: Cache | None = None) -> Tensor:
        """[b, t] to [b, t, v].

        With a cache, `ids_bt` continues what the cache has read, and is read into it: the whole
        prompt into an empty cache, then one position at a time. The mixing of a position needs
        that position alone. Raises ValueError for what does not fit the cache.
        """
        config, (batch, length) = self.config, ids_bt.shape
        start = cache.length if cache else 0
        if cache is None:
            table = rotary_table(self.embed.weight, length, config.dim // config.heads)
        else:
            cache.check(batch, length)
            table = cache.table[:, start : start + length]
        x_btd = self.embed(ids_bt)
        stack = Stack(x_btd, config.last_k)
        for index, block in enumerate(self.blocks):
            context = (table, cache.layers[index], start) if cache else (table,)
            if isinstance(block.mix, GRN):
                stack.push(block(*block.mix(stack, block.norms), *context))
            else:
                x_btd = block(x_btd, [], *context)
        normed_btd = self.mix(stack, [self.norm])[1][0] if self.mix else self.norm(x_btd)
        if cache:
            cache.length += length
        return project(normed_btd, self.head.weight)

    def new_cache(self, *, batch: int, capacity: int) -> Cache:
        """An empty cache for texts of up to `capacity` positions."""
        return Cache(self.config, self.embed.weight, batch=batch, capacity=capacity)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the blocks, which share one program; the mixing between them has its own kernel.

        The time to compile does not grow with the depth.
        """
        # one program per window, for training and for evaluation: more than Dynamo's usual limit,
        # beyond which it would quietly go on uncompiled
        limit = 4 * len(set(self.config.attention_windows)) + 4
        torch._dynamo.config.recompile_limit = max(limit, torch._dynamo.config.recompile_limit)
        for block in self.blocks:
            block.compile(*args, **kwargs)


def build_model(config: ModelConfig, *, generator: torch.Generator | None = None) -> LanguageModel:
    """A freshly initialised model.

    Matrices keep the variance of their input; those that write to the stack are smaller by
    sqrt(2 * depth), so that the stream's variance does not grow with depth. From the same generator
    state every residual kind gets the same matrices: the mixing's w is drawn last.
    """

    model = LanguageModel(config)
    read, write = config.dim**-0.5, (2 * config.depth * config.dim) ** -0.5
    std = {
        "embed": 1.0,
        "qkv": read,
        "out": write,
        "up": read,
        "down": write * config.ff_mult**-0.5,
        "head": 0.5 * read,
    }
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            kind = name.rpartition(".")[2]
            nn.init.normal_(module.weight, std=std[kind], generator=generator)
    for module in model.modules():
        if isinstance(module, GRN) and module.w_od is not None:
            nn.init.normal_(module.w_od, std=config.grn_init_std, generator=generator)
    return model


def load_weights(model: LanguageModel, weights: Mapping[str, Tensor]) -> None:
    """Load a model's weights; those of a `standard` one retrofit a model of any residual kind.

    The retrofitted model computes the same function until it is trained: b = 1, w = 0, and norms
    that are copies of the one norm. Raises RuntimeError for weights of another shape.
    """
    given = dict(weights)
    if "mix.b_ond" not in given:
        for name, own in model.state_dict().items():
            if name.endswith("b_ond"):
                given[name] = torch.ones_like(own)
            elif name.endswith("w_od"):
                given[name] = torch.zeros_like(own)
            elif (first := re.sub(r"norms\.\d+", "norms.0", name)) in given:
                given[name] = given[first]
    model.load_state_dict(given)


def _norm(config: ModelConfig) -> nn.RMSNorm:
    return nn.RMSNorm(config.dim, eps=NORM_EPS)


def _mixer(config: ModelConfig, number: int, outputs: int) -> nn.Module | None:
    if config.residual == "standard":
        return None
    return GRN(config, entries=config.stack_entries(number), outputs=outputs)
