"""The mixing of dca/residuals/dca.py on a GPU: launches the kernels of mix_triton_kernels.py.

Forward is one kernel, which reads the entries once. Backward recomputes the mixtures. For up to
GROUP entries it is one kernel too; the sums over tokens of more entries do not fit in registers.
Then one kernel writes the gradients of the mixtures, and one per GROUP entries continues from them.

Entries are separate tensors. A kernel takes a tuple of them, which the compiler unrolls: there is
one kernel per stack size up to GROUP, and above it one per multiple of GROUP, for padded tuples.
Padding and gradients that are None are bits set to 0 and need no kernels of their own.

Sums with given weights have no sums over tokens but those of gains and of b. Their backward is a
kernel for the norms, if gradients come through any, and one per SPREAD or GROUP entries.

Axes: t token (of all batches), d model, n stack entries, o outputs (3 for q, k, v), g groups.
"""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from dca.fused import mix_triton_kernels as kernels

GROUP = 4
"""Entries of a backward kernel: (GROUP + 2) * o sums of d features have to fit in registers."""
SPREAD = 8
"""The same without sums over tokens: two rows per entry and one per output have to fit."""


def mix_forward(
    entries: list[Tensor],
    b_ond: Tensor,
    w_od: Tensor | None,
    gain_od: Tensor,
    *,
    norm: bool,
    eps: float,
) -> tuple[Tensor, list[Tensor], tuple[Tensor, ...]]:
    """Mix n entries [t, d]: g_0, the o normed mixtures (all [t, d]), and what `backward` uses.

    o is 1, 2 or 3, n at most 60, d a multiple of 16. All tensors are contiguous and on the current
    device. Entries are float32 or bfloat16, also side by side; parameters are float32; mixtures
    have the type of the first entry, sums are float32. Saved are scalars of a token: 1 / rms of its
    mixtures [t, o] and, with w, the scores before the clamp [t, n, o] and, if `norm` (w reads the
    RMS-normalised entry), 1 / rms of its entries [t, n].
    """
    (outputs, n, d), tokens = b_ond.shape, len(entries[0])
    skip, *normed = (torch.empty_like(entries[0]) for _ in range(1 + outputs))
    rho_to = b_ond.new_empty(tokens, outputs)
    score_tno = None if w_od is None else b_ond.new_empty(tokens, n, outputs)
    scale_tn = b_ond.new_empty(tokens, n) if w_od is not None and norm else None
    slots = _slots(entries, entries)
    kernels.forward[(_programs(entries[0], warps_each=16),)](
        slots, b_ond, w_od, gain_od, skip, tuple(normed), rho_to, score_tno, scale_tn,
        tokens, n, _given(entries), eps, d, outputs, len(slots), **_width(d),
    )  # fmt: skip
    return skip, normed, tuple(x for x in (rho_to, score_tno, scale_tn) if x is not None)


def mix_backward(
    entries: list[Tensor],
    b_ond: Tensor,
    w_od: Tensor | None,
    gain_od: Tensor,
    saved: tuple[Tensor, ...],
    d_skip: Tensor | None,
    dy: list[Tensor | None],
    d_entries: list[Tensor | None],
    to_entries: list[Tensor],
    *,
    norm: bool,
    eps: float,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Writes the gradients of the n entries; returns those of b, w (None without one) and gain.

    `d_entries` are the gradients of each entry from its other readers, which are added. None stands
    for a gradient of zero. Gradients of parameters are float32. Nothing but `to_entries` is
    modified; it may be the same memory as `d_entries`.
    """
    del norm, eps  # follow from `saved`
    (outputs, n, d), tokens = b_ond.shape, len(entries[0])
    rho_to, score_tno, scale_tn = (*saved, None, None)[:3]
    outer = [*dy, d_skip]
    programs = _programs(entries[0], warps_each=8)

    def launch(
        part: slice, dg_tod: Tensor | None, *, mixes: bool, spreads: bool
    ) -> tuple[Tensor, ...]:
        """Gradients of b of some entries [o, slots, d], w and gain [o, d]; empty if not made."""
        slots = _slots(entries[part], entries[part])
        rows = [outputs * len(slots) * spreads, outputs * spreads, outputs * mixes]
        sums = b_ond.new_empty(programs, sum(rows), d)
        kernels.backward[(programs,)](
            slots, b_ond, w_od, gain_od, rho_to, score_tno, scale_tn,
            _slots(outer, [entries[0]] * len(outer)), _slots(d_entries[part], entries[part]),
            _slots(to_entries[part], entries[part]), dg_tod, sums, tokens, n, part.start,
            _given(entries[part]), _given(outer), _given(d_entries[part]),
            d, outputs, len(slots), mixes, spreads, **_width(d),
        )  # fmt: skip
        to_b, to_w, to_gain = sums.sum(0).split(rows)
        return to_b.view(outputs, -1, d), to_w, to_gain

    if n <= GROUP:
        parts = [launch(slice(0, n), None, mixes=True, spreads=True)]
        to_gain = parts[0][2]
    else:
        dg_tod = b_ond.new_empty(tokens, outputs, d)
        to_gain = launch(slice(0, n), dg_tod, mixes=True, spreads=False)[2]
        starts = range(0, n, GROUP)
        parts = [launch(slice(i, i + GROUP), dg_tod, mixes=False, spreads=True) for i in starts]
    to_b = torch.cat([part[0] for part in parts], dim=1)
    to_w = None if w_od is None else torch.stack([part[1] for part in parts]).sum(0)
    return to_b, to_w, to_gain


def sums_forward(
    entries: list[Tensor],
    weights: Tensor | None,
    b_ond: Tensor | None,
    gains: Sequence[Tensor | None],
    raw: Sequence[bool],
    *,
    eps: float,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The sums of `dca.mix.weighted_sums` that are wanted, and normed, and 1 / rms of each [t, o].

    `weights` are [t, o, n, g], b is [o, n, d]; with more than one group d is a power of two. The
    rest is as for `mix_forward`; results have the type of the first entry.
    """
    first, outputs = entries[0], len(gains)
    sums = [torch.empty_like(first) if want else None for want in raw]
    normed = [None if gain is None else torch.empty_like(first) for gain in gains]
    rho_to = first.new_empty(len(first), outputs, dtype=torch.float32)
    slots = _slots(entries, entries)
    kernels.sums_forward[(_programs(first, warps_each=16),)](
        slots, weights, b_ond, _or_first(gains, rho_to), _or_first(sums, first),
        _or_first(normed, first), rho_to, len(first), len(entries), _given(entries), eps,
        first.shape[-1], outputs, _groups(weights), len(slots), _given(sums), _given(normed),
        **_width(first.shape[-1]),
    )  # fmt: skip
    return [x for x in sums if x is not None], [y for y in normed if y is not None], rho_to


def sums_backward(
    entries: list[Tensor],
    weights: Tensor | None,
    b_ond: Tensor | None,
    gains: Sequence[Tensor | None],
    rho_to: Tensor,
    d_raw: Sequence[Tensor | None],
    dy: Sequence[Tensor | None],
    d_entries: Sequence[Tensor | None],
    to_entries: list[Tensor],
    *,
    needed: tuple[bool, bool],
    eps: float,
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    """Writes the gradients of the entries; returns those of the weights, of b and of each gain.

    `d_raw` and `dy` have an item per output; None is a gradient of zero. `d_entries` and
    `to_entries` are as in `mix_backward`. `needed` is whether the weights and b need gradients.
    """
    del eps  # in `rho_to`
    (tokens, d), n, outputs = entries[0].shape, len(entries), len(gains)
    groups, programs = _groups(weights), _programs(entries[0], warps_each=8)
    dg, to_gains = _through_norms(entries, weights, b_ond, gains, rho_to, d_raw, dy)
    to_weights = torch.empty_like(weights) if weights is not None and needed[0] else None
    b_parts = []
    step = GROUP if b_ond is not None and needed[1] else SPREAD
    for start in range(0, n, step):
        f = entries[start : start + step]
        to_b = b_ond.new_empty(programs, outputs, len(f), d) if step == GROUP else None  # type: ignore[union-attr]
        later = d_entries[start : start + step]
        kernels.sums_spread[(programs,)](
            tuple(f), weights, b_ond, _or_first(dg, entries[0]), _or_each(later, f),
            tuple(to_entries[start : start + step]), to_weights, to_b, tokens, n, start,
            _given(dg), _given(later), d, outputs, groups, len(f), **_width(d),
        )  # fmt: skip
        b_parts += [] if to_b is None else [to_b.sum(0)]
    return to_weights, torch.cat(b_parts, dim=1) if b_parts else None, to_gains


def _through_norms(
    entries: list[Tensor],
    weights: Tensor | None,
    b_ond: Tensor | None,
    gains: Sequence[Tensor | None],
    rho_to: Tensor,
    d_raw: Sequence[Tensor | None],
    dy: Sequence[Tensor | None],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """The gradients of every sum and gain; those of a sum without a norm are the given ones."""
    (tokens, d), first = entries[0].shape, entries[0]
    if not _given(dy):
        return [*d_raw], [None if gain is None else torch.zeros_like(gain) for gain in gains]
    pairs = list(zip(dy, d_raw, strict=True))
    dg = [x if up is None else rho_to.new_empty(tokens, d) for up, x in pairs]
    slots, programs = _slots(entries, entries), _programs(first, warps_each=8)
    sums = rho_to.new_empty(programs, len(gains), d)
    kernels.sums_norms[(programs,)](
        slots, weights, b_ond, _or_first(gains, rho_to), rho_to, _or_first(d_raw, first),
        _or_first(dy, first), _or_first(dg, first), sums, tokens, len(entries), _given(entries),
        _given(d_raw), d, len(gains), _groups(weights), len(slots), _given(dy), **_width(d),
    )  # fmt: skip
    to_gains = zip(gains, sums.sum(0), strict=True)
    return dg, [None if gain is None else to_gain for gain, to_gain in to_gains]


def _groups(weights: Tensor | None) -> int:
    return 1 if weights is None else weights.shape[-1]


def _or_first(tensors: Sequence[Tensor | None], stand_in: Tensor) -> tuple[Tensor, ...]:
    return tuple(stand_in if x is None else x for x in tensors)


def _or_each(tensors: Sequence[Tensor | None], stand_ins: list[Tensor]) -> tuple[Tensor, ...]:
    return tuple(s if x is None else x for x, s in zip(tensors, stand_ins, strict=True))


def _slots(tensors: Sequence[Tensor | None], stand_ins: list[Tensor]) -> tuple[Tensor, ...]:
    """A tensor for every slot of a kernel; a stand-in where there is none to read or write."""
    there = _or_each(tensors, stand_ins)
    padding = -len(there) % GROUP if len(there) > GROUP else 0
    return (*there, *there[-1:] * padding)


def _given(tensors: Sequence[Tensor | None]) -> int:
    """A bit mask: bit i is set if item i is not None."""
    return sum(1 << i for i, x in enumerate(tensors) if x is not None)


def _width(d: int) -> dict[str, int]:
    """The padded width, and warps for four features to a thread: 16 bytes of float32."""
    padded = triton.next_power_of_2(d)
    return {"D": padded, "num_warps": min(16, max(1, padded // 128))}


def _programs(like: Tensor, warps_each: int) -> int:
    """As many programs as run at once, if a multiprocessor's registers hold `warps_each` warps."""
    tokens, d = like.shape
    resident = 2  # in the interpreter: more programs than one, more tokens than programs
    if like.is_cuda:
        processors = torch.cuda.get_device_properties(like.device).multi_processor_count
        resident = processors * max(1, warps_each // _width(d)["num_warps"])
    return max(1, min(tokens, resident))
