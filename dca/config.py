"""What a model is: its fields, their limits, and what they cost in parameters and FLOPs."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

Residual = Literal["standard", "grn_v1", "grn_v2", "grn_v3", "dca"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder-only language model over bytes.

    Raises ValueError, naming the field, for a shape that cannot be built.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "strict": True,
        "use_attribute_docstrings": True,
    }

    dim: int = 128
    """Width of the residual stream, in features."""
    depth: int = 4
    """Number of decoder blocks."""
    heads: int = 4
    """Attention heads; dim / heads must be an even number (rotary turns pairs)."""
    residual: Residual = "dca"
    """How a block's input is made from the earlier blocks' outputs (see dca/grn.py)."""
    last_k: int | None = 2
    """Block outputs kept apart in the stack, older ones being summed; null keeps all of them."""
    attention_windows: tuple[int | None, ...] = (None,)
    """Positions that attention looks back on, itself included, block by block, repeated over the
    depth; null: all of them. [64, 256, null] is attention at three scales."""
    ff_mult: int = 4
    """Hidden width of the feed-forward layer, in multiples of dim."""
    vocab: int = 256
    """Number of symbols; 256 for bytes."""
    grn_init_std: float = 0.05
    """Standard deviation of w at the start; 0 starts as the plain transformer."""
    grn_norm: bool = True
    """Whether w reads RMS-normalised entries (without a gain) or, as in the paper, the raw ones."""

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "heads", "ff_mult", "vocab"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.residual not in get_args(Residual):
            kinds = ", ".join(get_args(Residual))
            raise ValueError(f"residual: expected one of {kinds}, got {self.residual!r}")
        if self.last_k is not None and self.last_k < 1:
            raise ValueError(f"last_k: expected at least 1 or null, got {self.last_k}")
        object.__setattr__(self, "attention_windows", tuple(self.attention_windows))  # from JSON
        if not self.attention_windows or any(
            w is not None and w < 1 for w in self.attention_windows
        ):
            raise ValueError(
                "attention_windows: expected a list of positions of at least 1 or null, "
                f"got {list(self.attention_windows)}"
            )
        if not 0 <= self.grn_init_std < float("inf"):
            raise ValueError(f"grn_init_std: expected at least 0, got {self.grn_init_std}")
        if self.dim % (2 * self.heads):
            raise ValueError(
                f"heads: dim / heads must be an even number, got {self.dim} / {self.heads}"
            )

    def window(self, block: int) -> int | None:
        """Positions that the attention of block `block`, from 1, sees; None for all."""
        return self.attention_windows[(block - 1) % len(self.attention_windows)]

    @property
    def streams(self) -> int:
        """Separate inputs of a block's attention: three (q, k, v) in DCA, one otherwise."""
        return 3 if self.residual == "dca" else 1

    @property
    def has_w(self) -> bool:
        """Whether the combination depends on its input."""
        return self.residual in ("grn_v3", "dca")

    def stack_entries(self, block: int) -> int:
        """Entries in the stack that block `block`, from 1, sees; depth + 1 is the output GRN."""
        outputs = block - 1
        if self.last_k is None or outputs <= self.last_k:
            return 1 + outputs
        return self.last_k + 2

    def parameter_count(self) -> int:
        """Trainable numbers in the model."""
        d = self.dim
        block = 3 * d * d + d * d + 2 * self.ff_mult * d * d + (self.streams + 1) * d
        mixing = sum(self._grn_parameters(t, self.streams) for t in range(1, self.depth + 1))
        mixing += self._grn_parameters(self.depth + 1, 1)
        return self.depth * block + mixing + 2 * self.vocab * d + d

    def _grn_parameters(self, block: int, outputs: int) -> int:
        if self.residual == "standard":
            return 0
        entries = self.stack_entries(block)
        b = entries * (1 if self.residual == "grn_v1" else self.dim)
        w = self.dim if self.has_w and entries > 1 else 0
        return outputs * (b + w)

    def flops_per_token(self, seq_len: int) -> int:
        """Matrix-product FLOPs of one token's forward pass, two per multiply-add.

        Attention is counted over the whole square of seq_len, as PyTorch's counter does, or over
        the two windows that a windowed block computes for each position. The element-wise work
        (norms, rotary, weighted sums) is bound by memory and left out, as usual.
        A training step costs three times this.
        """
        d = self.dim
        windows = [self.window(t) or seq_len for t in range(1, self.depth + 1)]
        seen = sum(min(seq_len, 2 * window) for window in windows)
        blocks = self.depth * 2 * (4 + 2 * self.ff_mult) * d * d + 4 * seen * d
        scores = 0
        if self.has_w:
            outputs = [self.streams] * self.depth + [1]
            counts = [self.stack_entries(t) for t in range(1, self.depth + 2)]
            scores = sum(2 * n * d * o for n, o in zip(counts, outputs, strict=True) if n > 1)
        return blocks + scores + 2 * d * self.vocab
