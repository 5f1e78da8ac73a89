"""The mixing of dca/residuals/dca.py on a GPU: launches the kernels of mix_triton_kernels.py.

Forward is one kernel, which reads the entries once. Backward recomputes the mixtures. For up to
GROUP entries it is one kernel too; the sums over tokens of more entries do not fit in registers.
Then one kernel writes the gradients of the mixtures, and one per GROUP entries continues from them.

Entries are separate tensors. A kernel takes a tuple of them, which the compiler unrolls: there is
one kernel per stack size up to GROUP, and above it one per multiple of GROUP, for padded tuples.
Padding and gradients that are None are bits set to 0 and need no kernels of their own.

Axes: t token (of all batches), d model, n stack entries, o outputs (3 for q, k, v).
"""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from dca import mix_triton_kernels as kernels

GROUP = 4
"""Entries of a backward kernel: (GROUP + 2) * o sums of d features have to fit in registers."""


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

    o is 1 or 3, n at most 60, d a multiple of 16. All tensors are contiguous and on the current
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


def _slots(tensors: Sequence[Tensor | None], stand_ins: list[Tensor]) -> tuple[Tensor, ...]:
    """A tensor for every slot of a kernel; a stand-in where there is none to read or write."""
    there = [s if x is None else x for x, s in zip(tensors, stand_ins, strict=True)]
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
