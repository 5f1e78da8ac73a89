"""The fused implementation of dca/mix.py as nodes of autograd, whatever kernels they call.

A node returns its entries beside its outputs, so that the next reader's gradients come back to it.
Modules of kernels have `mix_forward`, `mix_backward`, `sums_forward` and `sums_backward`.

Axes: b batch, t time, d model, n stack entries, o outputs, g groups of features.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dca.compat import exclusively_held

NORM_EPS = 1e-6
Results = tuple[list[Tensor], list[Tensor], list[Tensor]]
"""Sums; normed sums; the entries, for the next reader."""


def mix(
    module: Any,
    entries: list[Tensor],
    b_ond: Tensor,
    w_od: Tensor | None,
    gain_od: Tensor,
    *,
    norm: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """`dca.mix.mix` by the kernels of `module`, for gains stacked to [o, d]."""
    if not torch.is_grad_enabled():
        return *_forward(module, entries, b_ond, w_od, gain_od, norm=norm)[:2], entries
    skip, *rest = _Mix.apply(module, norm, b_ond, w_od, gain_od, *entries)
    return skip, rest[: len(gain_od)], rest[len(gain_od) :]


class _Mix(torch.autograd.Function):
    """(skip, normed mixtures, entries) by a kernel; nothing of size [b, t, d] is saved for it."""

    @staticmethod
    def forward(
        ctx: Any,
        module: Any,
        norm: bool,
        b_ond: Tensor,
        w_od: Tensor | None,
        gain_od: Tensor,
        *entries: Tensor,
    ) -> tuple[Tensor, ...]:
        skip, normed, saved = _forward(module, entries, b_ond, w_od, gain_od, norm=norm)
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        ctx.module, ctx.norm = module, norm
        ctx.count, ctx.shape = len(entries), entries[0].shape
        return (skip, *normed, *entries)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        b_ond, w_od, gain_od, *rest = ctx.saved_tensors
        saved, f = tuple(rest[: -ctx.count]), rest[-ctx.count :]
        to_entries = gradient_memory(gradients, f, ctx.shape)
        skip, *others = (None if g is None else g.contiguous() for g in gradients)
        normed, later = others[: -ctx.count], others[-ctx.count :]
        with torch.cuda.device_of(f[0]):
            to_parameters = ctx.module.mix_backward(
                f, b_ond, w_od, gain_od, saved, skip, normed, later, to_entries,
                norm=ctx.norm, eps=NORM_EPS,
            )  # fmt: skip
        return None, None, *to_parameters, *to_entries


def gradient_memory(
    gradients: tuple[Tensor | None, ...], entries: Sequence[Tensor], shape: torch.Size
) -> list[Tensor]:
    """Where the gradients of the entries go: over those from later readers, `gradients`' last ones.

    New memory, with the entry's type, where there is none or something else holds it too: mapping
    new memory takes as long as the sums. To be called before anything else refers to gradients.
    """
    held = exclusively_held(gradients)[-len(entries) :]
    return [
        g if g is not None and exclusive and g.is_contiguous() else f.new_empty(shape)
        for g, exclusive, f in zip(gradients[-len(entries) :], held, entries, strict=True)
    ]


def _forward(
    module: Any,
    entries: Sequence[Tensor],
    b_ond: Tensor,
    w_od: Tensor | None,
    gain_od: Tensor,
    *,
    norm: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
    """g_0, the normed mixtures, all [b, t, d], and the tensors for the backward pass."""
    shape = entries[0].shape
    f = [f_btd.contiguous().view(-1, shape[-1]) for f_btd in entries]
    b_ond, gain_od = b_ond.float().contiguous(), gain_od.float().contiguous()
    w_od = None if w_od is None else w_od.float().contiguous()
    with torch.cuda.device_of(f[0]):
        skip, normed, saved = module.mix_forward(f, b_ond, w_od, gain_od, norm=norm, eps=NORM_EPS)
    kept = [b_ond, w_od, gain_od, *saved, *f]
    return skip.view(shape), [y.view(shape) for y in normed], kept


def weighted_sums(
    module: Any,
    entries: list[Tensor],
    weights: Tensor | None,
    b_ond: Tensor | None,
    gains: Sequence[Tensor | None],
    raw: Sequence[bool],
) -> Results:
    """`dca.mix.weighted_sums` by the kernels of `module`: weights [b, t, o, n, g], b [o, n, d]."""
    if not torch.is_grad_enabled():
        sums, normed, _ = _sums_forward(module, entries, weights, b_ond, gains, raw)
        return sums, normed, entries
    out = _WeightedSums.apply(module, raw, len(gains), weights, b_ond, *gains, *entries)
    count = sum(raw)
    return [*out[:count]], [*out[count : -len(entries)]], [*out[-len(entries) :]]


class _WeightedSums(torch.autograd.Function):
    """(sums, normed sums, entries) by a kernel; nothing of size [b, t, d] is saved for it."""

    @staticmethod
    def forward(
        ctx: Any,
        module: Any,
        raw: Sequence[bool],
        outputs: int,
        weights: Tensor | None,
        b_ond: Tensor | None,
        *rest: Any,
    ) -> tuple[Tensor, ...]:
        gains, entries = rest[:outputs], rest[outputs:]
        sums, normed, saved = _sums_forward(module, entries, weights, b_ond, gains, raw)
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        ctx.module, ctx.raw, ctx.shape = module, raw, entries[0].shape
        return (*sums, *normed, *entries)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        outputs = len(ctx.raw)
        rho_to, weights, b_ond, *rest = ctx.saved_tensors
        gains, f = rest[:outputs], rest[outputs:]
        to_entries = gradient_memory(gradients, f, ctx.shape)
        given = iter([None if g is None else g.contiguous() for g in gradients])
        d_raw = [next(given) if want else None for want in ctx.raw]
        dy = [None if gain is None else next(given) for gain in gains]
        with torch.cuda.device_of(f[0]):
            to_weights, to_b, to_gains = ctx.module.sums_backward(
                f, weights, b_ond, gains, rho_to, d_raw, dy, [*given], to_entries,
                needed=ctx.needs_input_grad[3:5], eps=NORM_EPS,
            )  # fmt: skip
        if to_weights is not None:
            to_weights = to_weights.view(*ctx.shape[:2], *to_weights.shape[1:])
        return None, None, None, to_weights, to_b, *to_gains, *to_entries


def _sums_forward(
    module: Any,
    entries: Sequence[Tensor],
    weights: Tensor | None,
    b_ond: Tensor | None,
    gains: Sequence[Tensor | None],
    raw: Sequence[bool],
) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
    """The sums and the normed sums, all [b, t, d], and the tensors for the backward pass."""
    shape = entries[0].shape
    f = [f_btd.contiguous().view(-1, shape[-1]) for f_btd in entries]
    b_ond = None if b_ond is None else b_ond.float().contiguous()
    weights = None if weights is None else weights.float().contiguous().flatten(0, 1)
    gains = [None if gain is None else gain.float().contiguous() for gain in gains]
    with torch.cuda.device_of(f[0]):
        sums, normed, rho_to = module.sums_forward(f, weights, b_ond, gains, raw, eps=NORM_EPS)
    saved = [rho_to, weights, b_ond, *gains, *f]
    return [g.view(shape) for g in sums], [y.view(shape) for y in normed], saved
