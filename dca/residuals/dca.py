"""Generalised residual networks: a block's input as a learned mixture of all earlier outputs.

Source: Heddes et al., "DeepCrossAttention: Supercharging Transformer Residual Connections",
ICML 2025 (arXiv 2502.06785), sections 3 and 3.1. With f_i the entries of the stack:

    grn_v1   g = sum_i b_i f_i                         b_i a scalar
    grn_v2   g = sum_i b_i * f_i                       b_i a vector
    grn_v3   g = sum_i (b_i + relu(w . f_i)) * f_i     w shared by the entries

Where this differs from the paper, and why:
- relu is `clamp(min=0)`: the same function, but its gradient at 0 is 1, so that w = 0 is trained.
- w may read the RMS-normalised entry and may start at random (`norm`, `init_std`); the defaults are
  measured, see docs/results.md.
- A stack of one entry has no w: the norm behind it cancels a scalar factor of the only entry.

grn_v1, grn_v2 and grn_v3 use one combination per block, which feeds q, k and v alike; `dca` uses
three, each with a norm of its own, of which the un-normalised query input is the skip:

    h = attention(norm_q(q), norm_k(k), norm_v(v));  y = h + ff(norm_ff(h + q))

`dca_v` is between them, and not in the paper: q = k, with one norm, and v is another combination.

A block outputs only y, what it adds, and does not add its input, which later blocks find in the
stack. dca/mix.py computes the combinations of a GRN and the norms behind them in one pass.

Axes: b batch, t time, d model, n stack entries, o outputs of one GRN (3: q, k, v).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dca.block import OUT, Block, Reading, ReadOut, readings_of, state_names
from dca.config import ModelConfig
from dca.mix import Recorded, mix, sum_and_norm
from dca.options import Annotated, Range, ReadBy, options
from dca.registry import residual


@options
class Options:
    """Of dca, dca_v, grn_v1, grn_v2 and grn_v3."""

    last_k: Annotated[int, Range(ge=1)] | None = 2
    """Block outputs kept apart in the stack, older ones being summed; null keeps all of them."""
    init_std: Annotated[float, Range(ge=0), ReadBy("dca", "dca_v", "grn_v3")] = 0.05
    """Initial standard deviation of w; with 0 the model starts as the plain transformer."""
    norm: Annotated[bool, ReadBy("dca", "dca_v", "grn_v3")] = True
    """Whether w reads RMS-normalised entries (without a gain) or, as in the paper, the raw ones."""
    b_rate: Annotated[float, Range(gt=0)] = 10.0
    """Learning rate of b, in multiples of train.learning_rate: b moves far from 1."""
    w_rate: Annotated[float, Range(gt=0), ReadBy("dca", "dca_v", "grn_v3")] = 0.1
    """The same for w, where one step changes the weights of whole entries."""

    def resolved(self, config):  # type: ignore[no-untyped-def]  # no names of types in this class
        """As many as there are blocks are all."""
        every = self.last_k is None or self.last_k >= config.depth
        return {"last_k": None if every else self.last_k}


OUTPUTS = {1: ("all",), 2: ("q, k", "v"), 3: ("q", "k", "v")}
"""Names of a block's combinations, by their number: what they are the input of."""


class Stack(NamedTuple):
    """The outputs that a block reads, oldest first: f_0, the sum of the older ones, the last k.

    k-DCA, paper section 3.1; `last_k=None` keeps every output apart. Entries are held, not copied,
    and the sum of the older ones is kept incrementally: one addition per block.
    """

    entries: list[Tensor]
    recent: int
    """Number of the outputs that are kept apart, at most last_k."""
    last_k: int | None

    def push(self, output_btd: Tensor) -> "Stack":
        """The stack with a block's output; the oldest recent one may go into the running sum."""
        entries, recent, last_k = [*self.entries, output_btd], self.recent + 1, self.last_k
        if last_k is None or recent <= last_k:
            return Stack(entries, recent, last_k)
        if len(entries) == last_k + 2:  # the first to leave becomes the sum
            entries[1] = entries[1].to(entries[0].dtype)  # float32 under autocast
        else:
            entries[1] = entries[1] + entries.pop(2)
        return Stack(entries, last_k, last_k)


def stack_entries(config: ModelConfig, block: int) -> int:
    """Entries in the stack that block `block`, from 1, reads; depth + 1 is the output GRN."""
    outputs, last_k = block - 1, config.options.last_k
    return 1 + outputs if last_k is None or outputs <= last_k else last_k + 2


def entry_names(config: ModelConfig, block: int) -> list[tuple[str, int]]:
    """Names of the entries of the stack that block `block`, from 1, reads, and their places.

    With k-DCA: the embedding, the sum of the older outputs, the last k; each has its place, also in
    a block that does not have all of them yet. Full DCA has a place for each block.
    """
    count, last_k = stack_entries(config, block), config.options.last_k
    if last_k is None:
        return state_names(count)
    last = [(f"{n} back", last_k + 2 - n) for n in range(min(last_k, block - 1), 0, -1)]
    older = [("older", 1)] if count == len(last) + 2 else []
    return [("embedding", 0), *older, *last]


class GRN(ReadOut):
    """`outputs` independent combinations of the same `entries` stack entries.

    With `per_feature` b is a vector for each entry, else a scalar; with `dynamic` there is a w.
    """

    def __init__(
        self, config: ModelConfig, *, entries: int, outputs: int, per_feature: bool, dynamic: bool
    ) -> None:
        super().__init__()
        self.b_ond = nn.Parameter(torch.ones(outputs, entries, config.dim if per_feature else 1))
        self.w_od: nn.Parameter | None = None
        if dynamic and entries > 1:
            self.w_od = nn.Parameter(torch.zeros(outputs, config.dim))
        self.norm, self.init_std = config.options.norm, config.options.init_std

    def combine(
        self, stack: Stack, norms: Iterable[nn.RMSNorm]
    ) -> tuple[Tensor, list[Tensor], Stack]:
        """The first combination, and every combination after its norm, each [b, t, d].

        Also the stack that the next reader must be given, see dca/mix.py.
        """
        gains = [norm.weight for norm in norms]
        skip_btd, normed, entries = mix(stack.entries, self.b_ond, self.w_od, gains, norm=self.norm)
        return skip_btd, normed, Stack(entries, stack.recent, stack.last_k)

    def forward(self, state: Stack, norm: nn.RMSNorm) -> Tensor:
        """The read-out: the one combination after its norm."""
        return self.combine(state, [norm])[1][0]

    def readings(self, calls: Sequence[Recorded], config: ModelConfig) -> Iterator[Reading]:
        """The output GRN's."""
        return readings_of(calls, [OUT], entry_names(config, config.depth + 1))

    def initialise(self, **random: Any) -> None:
        """Draw w."""
        if self.w_od is not None:
            nn.init.normal_(self.w_od, std=self.init_std, **random)


@residual("grn_v3")
class GRNBlock(Block):
    """A block whose input is a combination of the stack."""

    per_feature: ClassVar[bool] = True
    dynamic: ClassVar[bool] = True

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__(config, number)
        self.mix = self._grn(config, number, self.inputs)

    @classmethod
    def start(cls, x_btd: Tensor, config: ModelConfig) -> Stack:
        """The embedding is the first entry."""
        return Stack([x_btd], 0, config.options.last_k)

    @classmethod
    def read_out(cls, config: ModelConfig) -> ReadOut:
        """The output GRN."""
        return cls._grn(config, config.depth + 1, 1)

    @classmethod
    def _grn(cls, config: ModelConfig, number: int, outputs: int) -> GRN:
        return GRN(
            config,
            entries=stack_entries(config, number),
            outputs=outputs,
            per_feature=cls.per_feature,
            dynamic=cls.dynamic,
        )

    @classmethod
    def plain_start(cls, config: ModelConfig) -> ModelConfig:
        """Without random w."""
        return config.with_options(init_std=0.0)

    @classmethod
    def learning_rates(cls, config: ModelConfig) -> dict[str, float]:
        """Of b and w, which have scales of their own."""
        return {"b_ond": config.options.b_rate, "w_od": config.options.w_rate}

    @classmethod
    def kept(cls, config: ModelConfig) -> float:
        """Of every block its inputs besides two, and of the stack, in the backward pass, gradients.

        Less is kept, by up to one row of every block: sums of older outputs differ in number.
        """
        return config.depth * (cls.inputs - 2.0) + cls.state_rows(config)

    @classmethod
    def state_rows(cls, config: ModelConfig) -> int:
        """The entries of the largest stack."""
        return stack_entries(config, config.depth + 1)

    def advance(self, state: Stack, *context: Any) -> Stack:
        """Combine outside of the compiled part: stacks differ in size and have a kernel."""
        skip_btd, normed, stack = self.mix.combine(state, self.norms)  # type: ignore[arg-type]
        return stack.push(self(skip_btd, normed, *context))

    def readings(self, calls: Sequence[Recorded], config: ModelConfig) -> Iterator[Reading]:
        """Of its combinations."""
        return readings_of(calls, OUTPUTS[self.inputs], entry_names(config, self.number))

    def forward(self, skip_btd: Tensor, normed: list[Tensor], *context: Any) -> Tensor:
        """The skip and the normed inputs, [b, t, d], to this block's output [b, t, d]."""
        h_btd = self.attention(normed, *context)
        _, normed_btd = sum_and_norm([skip_btd, h_btd], self.norm_ff)
        return h_btd + self.ff(normed_btd)

    def initialise(self, **random: Any) -> None:
        """Draw w."""
        self.mix.initialise(**random)


@residual("grn_v2")
class GRNv2(GRNBlock):
    """Without w."""

    dynamic = False


@residual("grn_v1")
class GRNv1(GRNv2):
    """Without w, and b a scalar: DenseFormer over deltas."""

    per_feature = False


@residual("dca_v")
class ValueDCA(GRNBlock):
    """Two combinations: one for q and k, which is the skip as well, and one for v."""

    inputs = 2


@residual("dca")
class DCA(GRNBlock):
    """Three combinations, for q, k and v."""

    inputs = 3
