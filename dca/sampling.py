"""Text generation, symbol by symbol with cached keys and values: temperature, top-k, top-p.

Axes: b batch, t time, v vocabulary.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from dca.errors import FieldError
from dca.model import LanguageModel

COLD = 1e-6
"""Temperature below which the likeliest byte is chosen: logits divided by it would overflow."""


def generate(
    model: LanguageModel,
    ids_bt: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Prompt and continuation, [b, t + max_new_tokens].

    Temperature 0 chooses the likeliest; `top_k` and `top_p` (nucleus, arXiv 1904.09751) cut the
    distribution first. Raises ValueError for an empty prompt or a parameter out of range.
    """
    new = stream(
        model,
        ids_bt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        generator=generator,
    )
    return torch.cat([ids_bt, *(ids_b[:, None] for ids_b in new)], dim=1)


def stream(
    model: LanguageModel,
    ids_bt: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield the new ids [b] one position at a time; arguments and errors as for `generate`."""
    check_sampling(max_new_tokens, temperature, top_k, top_p)
    if ids_bt.shape[1] == 0:
        raise FieldError("prompt", "expected at least one byte")
    return _steps(model, ids_bt, max_new_tokens, temperature, top_k, top_p, generator)


def check_sampling(
    max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    """Raise ValueError, naming the parameter, if one is out of range."""
    if max_new_tokens < 0:
        raise FieldError("max_new_tokens", f"expected at least 0, got {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise FieldError(
            "temperature", f"expected a finite number of at least 0, got {temperature}"
        )
    if top_k is not None and top_k < 1:
        raise FieldError("top_k", f"expected at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise FieldError("top_p", f"expected more than 0 and at most 1, got {top_p}")


@torch.inference_mode()
def _steps(
    model: LanguageModel,
    ids_bt: Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    batch, length = ids_bt.shape
    cache = model.new_cache(batch=batch, capacity=length + max_new_tokens)
    for _ in range(max_new_tokens):
        logits_bv = model(ids_bt, cache)[:, -1].float()
        ids_b = _choose(logits_bv, temperature, top_k, top_p, generator)
        yield ids_b
        ids_bt = ids_b[:, None]


def _choose(
    logits_bv: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> Tensor:
    if temperature < COLD:
        return logits_bv.argmax(-1)
    logits_bv = logits_bv / temperature
    if top_k is not None and top_k < logits_bv.shape[-1]:
        lowest_b1 = logits_bv.topk(top_k).values[:, -1:]
        logits_bv = logits_bv.masked_fill(logits_bv < lowest_b1, float("-inf"))
    if top_p is not None and top_p < 1:
        logits_bv = _nucleus(logits_bv, top_p)
    return torch.multinomial(logits_bv.softmax(-1), 1, generator=generator)[:, 0]


def _nucleus(logits_bv: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest symbols whose probabilities first reach top_p; at least one."""
    sorted_bv, order_bv = logits_bv.sort(descending=True, dim=-1)
    probability_bv = sorted_bv.softmax(-1)
    before_bv = probability_bv.cumsum(-1) - probability_bv
    too_many_bv = (before_bv >= top_p) & (before_bv > 0)  # a tiny top_p is 0 in float32
    cut_bv = sorted_bv.masked_fill(too_many_bv, float("-inf"))
    return torch.empty_like(cut_bv).scatter_(-1, order_bv, cut_bv)
