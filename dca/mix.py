"""The mixing of a block in one pass: weighted sums of the stack, and their RMS norms.

`mix` is the computation of the GRNs in dca/residuals/dca.py, in two implementations: PyTorch's own
operations on every device and type, and a fused kernel for float32 and bfloat16: kernels.cpp on the
CPU, Triton on a GPU (dca/fused). `weighted_sums` is for residual kinds whose weights come from
elsewhere.

The fused implementation also returns the entries, and the next reader takes these: in the backward
pass a reader receives an entry's gradient from the later readers and adds its own in the same pass,
in the same memory. So an entry has one consumer, and autograd never adds two gradients of a stack.

Axes: b batch, t time, d model, n stack entries, o outputs (3 for q, k, v), g groups of features.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dca import kernels
from dca.fused import autograd

NORM_EPS = autograd.NORM_EPS
KERNEL_TYPES = (torch.float32, torch.bfloat16)
"""Of entries, also side by side."""
MAX_SUMS = 5
"""Outputs up to which there are kernels for `weighted_sums`."""
MAX_GPU_ENTRIES = 60
"""Stack entries up to which the Triton kernels have been compiled."""
Mixed = tuple[Tensor, list[Tensor], list[Tensor]]
"""The first mixture; each mixture after its norm; the entries, for the next reader."""
Sums = tuple[list[Tensor], list[Tensor], list[Tensor]]
"""The sums that are wanted; those that are normed; the entries, for the next reader."""


class Recorded(NamedTuple):
    """The weights of one call of `mix` or `weighted_sums`."""

    b_ond: Tensor
    """The part that is the same for every token, [o, n, d] or [o, n, 1]; zeros if there is none."""
    added_on: Tensor
    """The other part, averaged over tokens and groups of features; zeros if there is none."""


_RECORDS: ContextVar[list[Recorded] | None] = ContextVar("records", default=None)


@contextmanager
def recorded() -> Iterator[list[Recorded]]:
    """A list to which the calls of `mix` and `weighted_sums` inside are added, for the report."""
    calls: list[Recorded] = []
    token = _RECORDS.set(calls)
    try:
        yield calls
    finally:
        _RECORDS.reset(token)


def _record(b_ond: Callable[[], Tensor], added_on: Callable[[], Tensor]) -> None:
    """Add a call to the list of `recorded`, if there is one; never in a compiled program."""
    if not torch.compiler.is_compiling() and (calls := _RECORDS.get()) is not None:
        calls.append(Recorded(b_ond(), added_on()))


def mix(
    entries: list[Tensor],
    b_ond: Tensor,
    w_od: Tensor | None,
    gains: Sequence[Tensor],
    *,
    norm: bool,
) -> Mixed:
    """Mixtures g_o = sum_i (b_oi + relu(w_o . f_i)) * f_i of n entries f_i [b, t, d].

    b is [o, n, d], or [o, n, 1] for a scalar per entry; `gains` are the o gains [d] of the RMS
    norms behind the mixtures; with `norm` w reads the RMS-normalised entry. Returns g_0, the normed
    g_o, and the entries for the next reader.
    """
    _record(lambda: b_ond, lambda: _mean_scores(entries, b_ond, w_od, norm=norm))
    gain_od = torch.stack([*gains]) if len(gains) > 1 else gains[0][None]
    module = _kernels(entries, len(gains))
    if module is None:
        return mix_plain(entries, b_ond, w_od, gain_od, norm=norm)
    b_ond = b_ond.expand(-1, -1, entries[0].shape[-1])
    return autograd.mix(module, entries, b_ond, w_od, gain_od, norm=norm)


def sum_and_norm(terms: list[Tensor], norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
    """The sum of one or two [b, t, d] and its RMS norm: the mixture with every weight 1.

    The first is the residual stream: under autocast it is float32, and the sum then is too.
    """
    module = _kernels(terms, 1)
    if module is None:
        total_btd = sum(terms[1:], terms[0])
        return total_btd, norm(total_btd)
    ones_1nd = terms[0].new_ones(1, len(terms), terms[0].shape[-1])
    gain_1d = norm.weight[None]
    total_btd, (normed_btd,), _ = autograd.mix(module, terms, ones_1nd, None, gain_1d, norm=False)
    return total_btd, normed_btd


def weighted_sums(
    entries: list[Tensor],
    weights: Tensor | None,
    b_ond: Tensor | None = None,
    gains: Sequence[Tensor | None] = (),
    *,
    raw: Sequence[bool] | None = None,
) -> Sums:
    """Sums g_o = sum_i (b_oi + weights_oi) * f_i of n entries f_i [b, t, d], and their RMS norms.

    For weights that the caller computes; nothing is clamped or normed before the sum.

    Args:
        entries: n of [b, t, d]; the sums have the type of the first.
        weights: per token, [b, t, o, n], or [b, t, o, n, g] for g groups of d / g adjacent
            features.
        b_ond: the same for every token, [o, n, d], or [o, n, 1] for scalars. One of the two, or
            both, are given.
        gains: of every output the gain [d] of the RMS norm behind it, or None for no norm. Empty:
            no norms.
        raw: for every output whether its sum is returned. The default returns the sums that have no
            norm.

    Returns:
        The sums for which `raw` is set; the normed sums of the outputs that have a gain; the
        entries for the next reader. The first two are lists in the order of the outputs.
    """
    if weights is None and b_ond is None:
        raise ValueError("weighted_sums needs weights, b_ond or both; both are None")
    outputs = len(b_ond) if weights is None else weights.shape[2]  # type: ignore[arg-type]
    gains = [*gains] or [None] * outputs
    wanted = [gain is None for gain in gains] if raw is None else [*raw]
    if weights is not None and weights.dim() == 4:
        weights = weights[..., None]
    _record(
        lambda: entries[0].new_zeros(outputs, len(entries), 1) if b_ond is None else b_ond,
        lambda: (
            entries[0].new_zeros(outputs, len(entries))
            if weights is None
            else weights.mean((0, 1, 4))
        ),
    )
    if b_ond is not None and b_ond.shape[-1] == 1:  # its gradient then is a sum of the weights'
        b_on1 = b_ond.expand(*entries[0].shape[:2], -1, -1, -1)
        weights, b_ond = b_on1 if weights is None else weights + b_on1, None
    groups = 1 if weights is None else weights.shape[-1]
    module = _kernels_of_sums(entries, outputs, groups)
    if module is None:
        return weighted_sums_plain(entries, weights, b_ond, gains, wanted)
    return autograd.weighted_sums(module, entries, weights, b_ond, gains, wanted)


def weighted_sums_plain(
    entries: list[Tensor],
    weights: Tensor | None,
    b_ond: Tensor | None,
    gains: Sequence[Tensor | None],
    raw: Sequence[bool],
) -> Sums:
    """`weighted_sums` in PyTorch's own operations, for weights [b, t, o, n, g] and b [o, n, d]."""
    groups = 1 if weights is None else weights.shape[-1]
    rows = [f_btd.unflatten(-1, (groups, -1)) for f_btd in entries]
    factors = []
    if weights is not None:
        factors.append(weights[..., None].to(torch.promote_types(weights.dtype, torch.float32)))
    if b_ond is not None:
        factors.append(b_ond.unflatten(-1, (groups, -1)))
    sums = []
    for o, _ in enumerate(gains):
        terms = [(x[..., o, i, :, :], f) for x in factors for i, f in enumerate(rows)]
        out = terms[0][0] * terms[0][1]
        for factor, f in terms[1:]:
            out = torch.addcmul(out, factor, f)
        sums.append(out.flatten(-2).to(entries[0].dtype))
    normed = [
        F.rms_norm(g_btd, g_btd.shape[-1:], gain_d.to(g_btd.dtype), NORM_EPS)
        for g_btd, gain_d in zip(sums, gains, strict=True)
        if gain_d is not None
    ]
    return [g_btd for g_btd, want in zip(sums, raw, strict=True) if want], normed, entries


def mix_plain(
    entries: list[Tensor], b_ond: Tensor, w_od: Tensor | None, gain_od: Tensor, *, norm: bool
) -> Mixed:
    """`mix` in PyTorch's own operations; gains stacked to [o, d].

    Weights per token and feature never exist: the sum is split into sum_i b_i * f_i, whose weights
    have no token axis, and sum_i s_i f_i, whose weights s_i = relu(w . f_i) have no feature axis.
    """
    scores_bto = [] if w_od is None else [scores(f_btd, w_od, norm=norm) for f_btd in entries]
    mixtures = [
        _weighted_sum(entries, b_nd, [s_bto[..., o, None] for s_bto in scores_bto])
        for o, b_nd in enumerate(b_ond.to(entries[0].dtype).unbind())
    ]
    width = entries[0].shape[-1:]
    normed = [
        F.rms_norm(g_btd, width, gain_d, NORM_EPS)
        for g_btd, gain_d in zip(mixtures, gain_od.to(entries[0].dtype), strict=True)
    ]
    return mixtures[0], normed, entries


def scores(f_btd: Tensor, w_od: Tensor, *, norm: bool) -> Tensor:
    """relu(w . f) of an entry [b, t, d] for every output: [b, t, o]."""
    s_bto = F.linear(f_btd, w_od.to(f_btd.dtype))
    if norm:
        s_bto = s_bto * torch.rsqrt(f_btd.square().mean(-1, keepdim=True) + NORM_EPS)
    return s_bto.clamp(min=0)


def _mean_scores(
    entries: list[Tensor], b_ond: Tensor, w_od: Tensor | None, *, norm: bool
) -> Tensor:
    """The scores of each entry for every output, averaged over batch and time: [o, n]."""
    if w_od is None:
        return torch.zeros(b_ond.shape[:2])
    means = [scores(f_btd, w_od, norm=norm).mean((0, 1)) for f_btd in entries]
    return torch.stack(means, 1)


def _weighted_sum(entries: list[Tensor], b_nd: Tensor, scores_bt1: list[Tensor]) -> Tensor:
    out_btd = b_nd[0] * entries[0]
    for b_d, f_btd in zip(b_nd[1:], entries[1:], strict=True):
        out_btd = torch.addcmul(out_btd, b_d, f_btd)
    for s_bt1, f_btd in zip(scores_bt1, entries, strict=False):
        out_btd = torch.addcmul(out_btd, s_bt1, f_btd)
    return out_btd


def _kernels(entries: Sequence[Tensor], outputs: int) -> Any:
    """The module whose `mix_forward` and `mix_backward` take these entries; None if none does.

    None while a graph is compiled: the compiler can optimise PyTorch's own operations.
    """
    return None if torch.compiler.is_compiling() or outputs > 3 else _module(entries)


def _module(entries: Sequence[Tensor]) -> Any:
    first = entries[0]
    if first.is_cuda and first.shape[-1] % kernels.LANES == 0 and len(entries) <= MAX_GPU_ENTRIES:
        fits = all(f.is_cuda and f.dtype in KERNEL_TYPES for f in entries)
        return _triton() if fits else None
    return kernels if kernels.fits(*entries, types=KERNEL_TYPES) else None


def _kernels_of_sums(entries: Sequence[Tensor], outputs: int, groups: int) -> Any:
    """The module whose `sums_forward` and `sums_backward` take these entries; None if none does."""
    first, width = entries[0], entries[0].shape[-1]
    if torch.compiler.is_compiling() or outputs > MAX_SUMS or width % (groups * kernels.LANES):
        return None
    if first.is_cuda and groups > 1 and width & (width - 1):  # Triton's tiles are powers of two
        return None
    return _module(entries)


@lru_cache
def _triton() -> Any:
    """dca.fused.mix_triton; None if Triton, a part of PyTorch for GPUs, is not installed."""
    return importlib.import_module("dca.fused.mix_triton") if find_spec("triton") else None
