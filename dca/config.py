"""The configuration of a model: its fields, their limits, and its parameters and FLOPs.

A configuration is read and checked without PyTorch, which takes seconds to import.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args

from dca import registry
from dca.errors import FieldError
from dca.options import from_data, in_section

if TYPE_CHECKING:
    from torch import nn

Activation = Literal["gelu", "relu2", "swiglu"]
HIDDEN_MULTIPLE = 16
"""Of the hidden width with swiglu: kernels on CPUs and GPUs need such widths."""


RENAMED = {
    "model.last_k": "model.dca.last_k",
    "model.grn_init_std": "model.dca.init_std",
    "model.grn_norm": "model.dca.norm",
    "model.hyper_streams": "model.hyper_connections.streams",
    "train.grn_b_rate": "model.dca.b_rate",
    "train.grn_w_rate": "model.dca.w_rate",
}
"""Keys of earlier versions that are options of a residual kind now, and their present names."""


@dataclass(frozen=True, kw_only=True)
@registry.residual.add_sections
class ModelConfig:
    """The shape of a decoder-only language model over bytes.

    Besides the fields below it has one for each file of dca/residuals that has options, such as
    `dca`: an object, which is also made of a mapping. Raises FieldError for a shape that cannot be
    built.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "strict": True,
        "use_attribute_docstrings": True,
    }

    architecture: Annotated[str, registry.architecture] = "gpt"
    """The model as a whole (see dca/architectures)."""
    dim: int = 128
    """Width of the residual stream, in features."""
    depth: int = 4
    """Number of decoder blocks."""
    heads: int = 4
    """Attention heads; dim / heads must be an even number (rotary turns pairs)."""
    kv_heads: int | None = None
    """Heads of keys and values, each read by heads / kv_heads heads of queries (arXiv 2305.13245):
    a smaller cache; must divide heads; null: as many as heads."""
    qk_norm: bool = False
    """Whether each head's queries and keys are RMS-normalised, without a gain, before they are
    turned by their positions."""
    residual: Annotated[str, registry.residual] = "dca"
    """How a block's input is made from the earlier blocks' outputs (see dca/residuals)."""
    attention_windows: tuple[int | None, ...] = (None,)
    """Positions that attention reads, its own included: a number for each block, repeated over the
    depth; null: all of them. [64, 256, null] is attention at three scales."""
    ff_mult: int = 4
    """Hidden width of the feed-forward layer, in multiples of dim."""
    activation: Activation = "gelu"
    """Of the feed-forward layer: GELU, the square of ReLU (arXiv 2109.08668) or SwiGLU (arXiv
    2002.05202), whose third matrix is paid for by two thirds of the width, to the nearest multiple
    of 16."""
    vocab: int = 256
    """Number of symbols; 256 for bytes."""
    tied_embeddings: bool = False
    """Whether one matrix is both embedding and head; the logits then have a factor of 0.5 /
    sqrt(dim), so that they start as large as with a separate head."""
    logit_softcap: float | None = None
    """Bound c of the logits: c * tanh(logits / c); null: none."""
    zero_init: bool = False
    """Whether the output matrices of attention and feed-forward start at zero instead of at random
    values."""
    dropout: float = 0.0
    """Share of the features of the embedding and of each attention's and feed-forward's output
    that a training step drops."""

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "heads", "ff_mult", "vocab"):
            if getattr(self, name) < 1:
                raise FieldError(name, f"expected at least 1, got {getattr(self, name)}")
        for names in (registry.architecture, registry.residual):
            names.module(getattr(self, names.field))  # which raises for an unknown name
        for section, options in registry.residual.options.items():
            if isinstance(given := getattr(self, section), Mapping):  # from JSON, or in Python
                object.__setattr__(self, section, from_data(options, given, section))
        object.__setattr__(self, "attention_windows", tuple(self.attention_windows))  # from JSON
        if not self.attention_windows or any(
            w is not None and w < 1 for w in self.attention_windows
        ):
            raise FieldError(
                "attention_windows",
                "expected a list of positions of at least 1 or null, "
                f"got {list(self.attention_windows)}",
            )
        self._check_parts()
        if check := getattr(self.options, "check", None):
            with in_section(registry.residual.section(self.residual)):
                check(self)

    def _check_parts(self) -> None:
        """Raise FieldError for a value of attention, feed-forward or the logits."""
        if self.activation not in get_args(Activation):
            known = ", ".join(get_args(Activation))
            raise FieldError("activation", f"expected one of {known}, got {self.activation!r}")
        if self.logit_softcap is not None and not 0 < self.logit_softcap < float("inf"):
            message = f"expected more than 0 or null, got {self.logit_softcap}"
            raise FieldError("logit_softcap", message)
        if not 0 <= self.dropout < 1:
            raise FieldError("dropout", f"expected at least 0 and less than 1, got {self.dropout}")
        if self.dim % (2 * self.heads):
            raise FieldError(
                "heads", f"dim / heads must be an even number, got {self.dim} / {self.heads}"
            )
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            message = f"expected null or a divisor of heads = {self.heads}, got {self.kv_heads}"
            raise FieldError("kv_heads", message)

    @property
    def options(self) -> Any:
        """The options of its residual kind; None if the kind has none."""
        section = registry.residual.section(self.residual)
        return getattr(self, section) if section else None

    def with_options(self, **changes: Any) -> Self:
        """The same with some options of its residual kind changed."""
        section = registry.residual.section(self.residual)
        return replace(self, **{section: replace(self.options, **changes)})

    @property
    def head_dim(self) -> int:
        """Features of a head."""
        return self.dim // self.heads

    @property
    def groups(self) -> int:
        """`kv_heads`, resolved."""
        return self.kv_heads or self.heads

    @property
    def ff_dim(self) -> int:
        """Hidden width of the feed-forward layer."""
        width = self.ff_mult * self.dim
        if self.activation != "swiglu":
            return width
        return max(1, round(2 * width / (3 * HIDDEN_MULTIPLE))) * HIDDEN_MULTIPLE

    def window(self, block: int) -> int | None:
        """Positions that the attention of block `block`, from 1, sees; None for all."""
        return self.attention_windows[(block - 1) % len(self.attention_windows)]

    @lru_cache  # noqa: B019  configurations are few, small and frozen
    def parameter_count(self) -> int:
        """Trainable numbers in the model, counted on the meta device."""
        return sum(parameter.numel() for parameter in self.meta_model().parameters())

    @lru_cache  # noqa: B019
    def flops_per_token(self, seq_len: int) -> int:
        """Matrix-product FLOPs of one token's forward pass, two per multiply-add.

        As PyTorch's counter counts them for a text of seq_len tokens: attention over the whole
        square, or over the two windows that a windowed block computes for each position. The
        element-wise work (norms, rotary, weighted sums) is bound by memory and not counted, as
        usual. A training step costs three times this.
        """
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        ids_bt = torch.zeros(1, seq_len, dtype=torch.long, device="meta")
        model, counter = self.meta_model().eval(), FlopCounterMode(display=False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model(ids_bt)
        return round(counter.get_total_flops() / seq_len)

    def meta_model(self) -> "nn.Module":
        """The model on the meta device: shapes without values."""
        import torch

        from dca.compat import SkipInitialisation

        with torch.device("meta"), SkipInitialisation():
            return registry.architecture[self.architecture](self)
