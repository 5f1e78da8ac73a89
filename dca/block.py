"""The base class of decoder blocks, one subclass for each residual kind.

A residual kind defines the state that passes from block to block, and how a block's input is
computed from it. A kind is registered by name in a file of dca/residuals; `standard` is the
simplest.

Axes: b batch, t time, d model.
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from dca.config import ModelConfig
from dca.layers import Attention, FeedForward
from dca.mix import NORM_EPS, Recorded, weighted_sums

OUT = "out"
"""Name of the read-out behind the last block, as a layer and as an output."""


class Reading(NamedTuple):
    """A weight that a layer has learned for one of the things that it reads, for the report."""

    output: str
    """What it is the input of, such as q."""
    entry: str
    """What is read, such as the embedding."""
    place: int
    """Column of that in a figure: from older to newer."""
    b: float
    """The part that is the same for every token, averaged over features."""
    spread: float
    """Standard deviation of that over features."""
    added: float
    """The part that depends on the input, averaged over the text that was read."""


def readings_of(
    calls: Sequence[Recorded], outputs: Sequence[str], entries: Sequence[tuple[str, int]]
) -> Iterator[Reading]:
    """The weights of calls of the mixing, by the names of all their outputs, and of the entries
    with their places, which each of them reads."""
    names = iter(outputs)
    for b_ond, added_on in calls:
        for o, output in zip(range(len(b_ond)), names, strict=False):
            for n, (entry, place) in enumerate(entries):
                b_d, added = b_ond[o, n], added_on[o, n].item()
                spread = b_d.std(correction=0).item()
                yield Reading(output, entry, place, b_d.mean().item(), spread, added)


def fixed_readings(
    output: str, entries: Sequence[str], weights: Sequence[Tensor]
) -> Iterator[Reading]:
    """Weights that are one number each and depend on no input."""
    for place, (entry, weight) in enumerate(zip(entries, weights, strict=True)):
        yield Reading(output, entry, place, weight.item(), 0.0, 0.0)


def state_names(count: int) -> list[tuple[str, int]]:
    """The embedding and what the blocks behind it have made, with their places."""
    return [("embedding", 0), *((f"block {n}", n) for n in range(1, count))]


class ReadOut(nn.Module):
    """Computes the input of the logits from the state behind the last block."""

    def forward(self, state: Any, norm: nn.RMSNorm) -> Tensor:
        """The state, here [b, t, d] itself, after the final norm: [b, t, d]."""
        return norm(state)

    def readings(self, calls: Sequence[Recorded], config: ModelConfig) -> Iterator[Reading]:
        """As `Block.readings`."""
        return iter(())

    def initialise(self, **random: Any) -> None:
        """Draw the random parameters; `random` is the generator."""


class Block(nn.Module):
    """Attention and feed-forward with their norms; a kind adds the connections between them.

    With its initial parameters a kind computes the plain transformer, see `plain_start`. What a
    kind adds are Parameters and not Linear layers, because the matrices of those have the common
    initialisation and weight decay. Its options, if it has any, are the class `Options` of its file
    (dca/options.py), and `config.options` here.
    """

    inputs: ClassVar[int] = 1
    """Norms in front of attention: one for q, k and v alike, two (q and k, v), or three."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        """Block `number` of the model, from 1."""
        super().__init__()
        self.number = number
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
        """The module that reads the state behind the last block."""
        return ReadOut()

    @classmethod
    def plain_start(cls, config: ModelConfig) -> ModelConfig | None:
        """A configuration of the same shape with whose initial parameters the kind computes the
        plain transformer, so that a trained one can start it; None if there is none."""
        return config

    @classmethod
    def learning_rates(cls, config: ModelConfig) -> dict[str, float]:
        """Learning rates of parameters that the kind adds, in multiples of the others', by the last
        part of their names; 1 for those that are not listed."""
        return {}

    @classmethod
    def kept(cls, config: ModelConfig) -> float:
        """What all blocks keep of a token for the backward pass beyond those of `standard`, in
        multiples of dim: for the estimate of a training's memory."""
        return 0.0

    def readings(self, calls: Sequence[Recorded], config: ModelConfig) -> Iterator[Reading]:
        """What the block has learned to read, for the report; nothing by default.

        `calls` are the block's calls of the mixing (dca/mix.py) over a text.
        """
        return iter(())

    @classmethod
    def state_rows(cls, config: ModelConfig) -> int:
        """Rows of dim features in the largest state of a token: the memory of an evaluation."""
        return 1

    def advance(self, state: Any, *context: Any) -> Any:
        """The state behind this block. The given state is not modified: it may be read again.

        `forward` is compiled, as one program for all blocks; the rest of this method is not.
        `context` holds the arguments of Attention besides its inputs.
        """
        return self(state, *context)

    def initialise(self, **random: Any) -> None:
        """Draw the random parameters that the kind adds; `random` is the generator."""


SUBLAYERS = ("attention", "ff")


class SublayerBlock(Block):
    """A block of a kind that connects attention and feed-forward, its two sublayers, alike."""

    def read(self, state: Any, part: int, norm: nn.RMSNorm) -> tuple[Tensor, Any]:
        """The input of a sublayer after its norm, [b, t, d], and the state for `write`.

        `part` is 0 for attention and 1 for feed-forward.
        """
        raise NotImplementedError

    def write(self, state: Any, part: int, y_btd: Tensor) -> Any:
        """The state behind a sublayer with the output y."""
        raise NotImplementedError

    def advance(self, state: Any, *context: Any) -> Any:
        """Read and write outside of the compiled part: what they mix differs and has a kernel."""
        (norm,) = self.norms
        normed_btd, state = self.read(state, 0, norm)  # type: ignore[arg-type]
        state = self.write(state, 0, self(normed_btd, *context))
        normed_btd, state = self.read(state, 1, self.norm_ff)
        return self.write(state, 1, self(normed_btd))

    def forward(self, normed_btd: Tensor, *context: Any) -> Tensor:
        """The output of attention, or, without its context, of the feed-forward; [b, t, d]."""
        return self.attention([normed_btd], *context) if context else self.ff(normed_btd)


def rms_norm(config: ModelConfig) -> nn.RMSNorm:
    """A norm over the features, with a gain."""
    return nn.RMSNorm(config.dim, eps=NORM_EPS)


def normalise(x_btd: Tensor, norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
    """x after the norm, and x for its next reader."""
    ones_111 = x_btd.new_ones(1, 1, 1)
    _, (normed_btd,), (x_btd,) = weighted_sums([x_btd], None, ones_111, [norm.weight])
    return normed_btd, x_btd
