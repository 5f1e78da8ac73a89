"""The mixing of a block in one pass: weighted sums of the stack, and their RMS norms.

`mix` is what the GRNs of dca/grn.py compute. It has one meaning and two ways: plain PyTorch, right
on every device and type, and a fused kernel (mix.cpp) for float32 on the CPU, which a C++ compiler
builds in a second at its first use.

The fused way is threaded through the stack: it hands every entry on to the next reader, so that in
the backward pass a reader receives what the later readers send to an entry and adds its own share
in the same pass. An entry has one consumer then, and autograd never adds two gradients of a stack.

Axes: b batch, t time, d model, n stack entries, o outputs (3 for q, k, v).
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NORM_EPS = 1e-6
LANES = 16
"""Widths that the kernel takes are multiples of this."""

Mixed = tuple[Tensor, list[Tensor], list[Tensor]]
"""The first mixture; each mixture after its norm; the entries, for the next reader."""


@torch.compiler.disable  # type: ignore[untyped-decorator]
def mix(
    entries: list[Tensor], b_ond: Tensor, w_od: Tensor | None, gains: list[Tensor], *, norm: bool
) -> Mixed:
    """Mixtures g_o = sum_i (b_oi + relu(w_o . f_i)) * f_i of n entries f_i [b, t, d].

    b is [o, n, d], or [o, n, 1] for a scalar per entry; `gains` are the o gains [d] of the RMS
    norms behind the mixtures; `norm` says whether w reads the RMS-normalised entry. Returns g_0,
    the normed g_o, and the entries to hand to the next reader.
    """
    gain_od = torch.stack(gains)
    if not _fits_kernel(entries):
        return mix_plain(entries, b_ond, w_od, gain_od, norm=norm)
    b_ond = b_ond.expand(-1, -1, entries[0].shape[-1])
    skip, *rest = _Fused.apply(norm, b_ond, w_od, gain_od, *entries)
    return skip, rest[: len(gains)], rest[len(gains) :]


def mix_plain(
    entries: list[Tensor], b_ond: Tensor, w_od: Tensor | None, gain_od: Tensor, *, norm: bool
) -> Mixed:
    """`mix` in PyTorch's own operations; gains stacked to [o, d].

    Weights per token and feature never exist: the sum is split into sum_i b_i * f_i, whose weights
    have no token axis, and sum_i s_i f_i, whose weights s_i = relu(w . f_i) have no feature axis.
    """
    scores = [] if w_od is None else [_scores(f_btd, w_od, norm=norm) for f_btd in entries]
    mixtures = [
        _weighted_sum(entries, b_nd, [s_bto[..., o, None] for s_bto in scores])
        for o, b_nd in enumerate(b_ond.to(entries[0].dtype).unbind())
    ]
    width = entries[0].shape[-1:]
    normed = [
        torch.nn.functional.rms_norm(g_btd, width, gain_d, NORM_EPS)
        for g_btd, gain_d in zip(mixtures, gain_od.to(entries[0].dtype), strict=True)
    ]
    return mixtures[0], normed, entries


def _scores(f_btd: Tensor, w_od: Tensor, *, norm: bool) -> Tensor:
    """relu(w . f) for every output: [b, t, o]."""
    s_bto = torch.nn.functional.linear(f_btd, w_od.to(f_btd.dtype))
    if norm:
        s_bto = s_bto * torch.rsqrt(f_btd.square().mean(-1, keepdim=True) + NORM_EPS)
    return s_bto.clamp(min=0)


def _weighted_sum(entries: list[Tensor], b_nd: Tensor, scores_bt1: list[Tensor]) -> Tensor:
    out_btd = b_nd[0] * entries[0]
    for b_d, f_btd in zip(b_nd[1:], entries[1:], strict=True):
        out_btd = torch.addcmul(out_btd, b_d, f_btd)
    for s_bt1, f_btd in zip(scores_bt1, entries, strict=False):
        out_btd = torch.addcmul(out_btd, s_bt1, f_btd)
    return out_btd


def _fits_kernel(entries: list[Tensor]) -> bool:
    return (
        all(f.device.type == "cpu" and f.dtype == torch.float32 for f in entries)
        and entries[0].shape[-1] % LANES == 0
        and _kernel() is not None
    )


class _Fused(torch.autograd.Function):
    """(skip, normed mixtures, entries) by the kernel; nothing of size [b, t, d] is saved for it."""

    @staticmethod
    def forward(
        ctx: Any, norm: bool, b_ond: Tensor, w_od: Tensor | None, gain_od: Tensor, *entries: Tensor
    ) -> tuple[Tensor, ...]:
        kernel = _kernel()
        f = [f_btd.contiguous() for f_btd in entries]
        b_ond, gain_od = b_ond.contiguous(), gain_od.contiguous()
        outputs, n, width = b_ond.shape
        rows = f[0].numel() // width
        out = [torch.empty_like(f[0]) for _ in range(1 + outputs)]
        saved = [f[0].new_empty(rows, k) for k in (outputs * n, n, outputs)]
        kernel.mix_forward(
            *_shape(rows, b_ond, norm), _array(f), _at(b_ond), _at(w_od), _at(gain_od),
            _at(out[0]), _array(out[1:]), *map(_at, saved),
        )  # fmt: skip
        ctx.save_for_backward(b_ond, w_od, gain_od, *saved, *f)
        ctx.set_materialize_grads(False)
        ctx.norm = norm
        return (*out, *entries)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        kernel = _kernel()
        b_ond, w_od, gain_od, *saved = ctx.saved_tensors
        saved, f = saved[:3], saved[3:]
        outputs = len(b_ond)
        given = [None if g is None else g.contiguous() for g in gradients]
        skip, normed, later = given[0], given[1 : 1 + outputs], given[1 + outputs :]
        to_entries = [torch.empty_like(f_btd) for f_btd in f]
        to_b, to_gain = torch.empty_like(b_ond), torch.empty_like(gain_od)
        to_w = None if w_od is None else torch.empty_like(w_od)
        kernel.mix_backward(
            *_shape(f[0].numel() // b_ond.shape[-1], b_ond, ctx.norm), _array(f), _at(b_ond),
            _at(w_od), _at(gain_od), *map(_at, saved), _at(skip), _array(normed), _array(later),
            _array(to_entries), _at(to_b), _at(to_w), _at(to_gain),
        )  # fmt: skip
        return None, to_b, to_w, to_gain, *to_entries


def _shape(rows: int, b_ond: Tensor, norm: bool) -> tuple[Any, ...]:
    outputs, n, width = b_ond.shape
    eps = ctypes.c_float(NORM_EPS)
    return ctypes.c_long(rows), n, width, outputs, int(norm), eps, torch.get_num_threads()


def _at(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _array(tensors: list[Tensor] | list[Tensor | None]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*map(_at, tensors))


@lru_cache
def _kernel() -> Any:
    """The compiled mix.cpp, or None, with one warning, where it cannot be built."""
    source = Path(__file__).with_name("mix.cpp")
    machine = {"AVX2": "x86-64-v3", "AVX512": "x86-64-v4"}
    capability = torch.backends.cpu.get_cpu_capability()
    flags = ["-O3", "-std=c++17", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC"]
    if capability in machine:
        flags.append(f"-march={machine[capability]}")
    compiler = os.environ.get("CXX") or shutil.which("c++") or "c++"
    command = [compiler, *flags, str(source)]
    key = hashlib.sha256(source.read_bytes() + " ".join(command).encode()).hexdigest()[:16]
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dca-gpt"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"mix-{key}.so"
        if not path.exists():  # several processes may build it: each its own, the last one stays
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                built = Path(scratch, path.name)
                subprocess.run([*command, "-o", str(built)], check=True, capture_output=True)
                built.replace(path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", b"") or str(error)
        warnings.warn(f"the mixing runs unfused, slower: {reason!r}", stacklevel=2)
        return None
