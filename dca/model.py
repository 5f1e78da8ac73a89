"""The language model: bytes in, logits out, with the residual kind chosen by the configuration.

Axes: b batch, t time, d model, v vocabulary.
"""

import torch
from torch import Tensor, nn

from dca.config import ModelConfig
from dca.grn import GRN, NORM_EPS, ResidualStream, Stack
from dca.layers import Attention, FeedForward, rotary_table


class Block(nn.Module):
    """One decoder block. Its output is the delta f_t(g_t): nothing is added to it here.

    h = attention(norm_q(q), norm_k(k), norm_v(v));  y = h + ff(norm_ff(h + q)), where the skip q is
    the un-normalised query input (paper, section 3.2).
    """

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()
        self.mix = _mixer(config, number, config.streams)
        self.norms = nn.ModuleList(_norm(config) for _ in range(config.streams))
        self.attention = Attention(config)
        self.norm_ff = _norm(config)
        self.ff = FeedForward(config)

    def forward(self, entries: list[Tensor], table: tuple[Tensor, Tensor]) -> Tensor:
        """Stack entries [b, t, d] to this block's output [b, t, d]."""
        inputs = self.mix(entries) if self.mix else (entries[0],)
        normed = tuple(norm(x) for norm, x in zip(self.norms, inputs, strict=True))
        h_btd = self.attention(normed, table)
        return h_btd + self.ff(self.norm_ff(h_btd + inputs[0]))


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

    def forward(self, ids_bt: Tensor) -> Tensor:
        """[b, t] to [b, t, v]."""
        config = self.config
        first_btd = self.embed(ids_bt)
        table = rotary_table(first_btd, config.dim // config.heads)
        plain = config.residual == "standard"
        stack = ResidualStream(first_btd) if plain else Stack(first_btd, config.last_k)
        for block in self.blocks:
            stack.push(block(stack.entries(), table))
        entries = stack.entries()
        (out_btd,) = self.mix(entries) if self.mix else entries
        return self.head(self.norm(out_btd))


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


def _norm(config: ModelConfig) -> nn.RMSNorm:
    return nn.RMSNorm(config.dim, eps=NORM_EPS)


def _mixer(config: ModelConfig, number: int, outputs: int) -> nn.Module | None:
    if config.residual == "standard":
        return None
    return GRN(config, entries=config.stack_entries(number), outputs=outputs)
