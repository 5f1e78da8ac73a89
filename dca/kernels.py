"""kernels.cpp from Python: compiled at its first use, in a second, by the machine's C++ compiler.

Every function takes dense float32 tensors on the CPU. Where there is no compiler, `library` is None
and the callers use PyTorch's own operations.
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

LANES = 16
"""Widths are multiples of this."""
FEW_ROWS = 8
"""Rows up to which `linear` is faster than a matrix product, which is made for many."""
ROWS_OF_A_THREAD = 16
"""Rows below which a second thread costs the mixing more than it does."""


def fits(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors, here."""
    return (
        all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)
        and tensors[0].shape[-1] % LANES == 0
        and library() is not None
    )


def linear(x: Tensor, weight: Tensor, *, gelu: bool) -> Tensor:
    """x [..., in] times weight [out, in] transposed, without gradient, for a few rows of x.

    Then, if asked, the exact GELU.
    """
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], len(weight))
    outputs, width = weight.shape
    library().linear(
        ctypes.c_long(x.numel() // width), width, ctypes.c_long(outputs), int(gelu),
        _at(x), _at(weight), _at(y), torch.get_num_threads(),
    )  # fmt: skip
    return y


def mix_forward(
    entries: list[Tensor],
    b_ond: Tensor,
    w_od: Tensor | None,
    gain_od: Tensor,
    *,
    norm: bool,
    eps: float,
) -> tuple[Tensor, list[Tensor], tuple[Tensor, ...]]:
    """The first mixture, the normed mixtures, and what the backward pass wants to be given."""
    outputs, n, width = b_ond.shape
    first = entries[0]
    rows = first.numel() // width
    skip, *normed = (torch.empty_like(first) for _ in range(1 + outputs))
    saved = tuple(first.new_empty(rows, k) for k in (outputs * n, n, outputs))
    library().mix_forward(
        *_shape(rows, b_ond, norm, eps), _array(entries), _at(b_ond), _at(w_od), _at(gain_od),
        _at(skip), _array(normed), *map(_at, saved),
    )  # fmt: skip
    return skip, normed, saved


def mix_backward(
    entries: list[Tensor],
    b_ond: Tensor,
    w_od: Tensor | None,
    gain_od: Tensor,
    saved: tuple[Tensor, ...],
    d_skip: Tensor | None,
    d_normed: list[Tensor | None],
    d_later: list[Tensor | None],
    *,
    norm: bool,
    eps: float,
) -> tuple[list[Tensor], Tensor, Tensor | None, Tensor]:
    """Gradients of the entries, added to those of their later readers, and of b, w and gains."""
    d_entries = [torch.empty_like(f) for f in entries]
    d_b, d_gain = torch.empty_like(b_ond), torch.empty_like(gain_od)
    d_w = None if w_od is None else torch.empty_like(w_od)
    library().mix_backward(
        *_shape(len(saved[0]), b_ond, norm, eps), _array(entries), _at(b_ond), _at(w_od),
        _at(gain_od), *map(_at, saved), _at(d_skip), _array(d_normed), _array(d_later),
        _array(d_entries), _at(d_b), _at(d_w), _at(d_gain),
    )  # fmt: skip
    return d_entries, d_b, d_w, d_gain


@lru_cache
def library() -> Any:
    """The compiled kernels, or None, with one warning, where they cannot be built."""
    source = Path(__file__).with_name("kernels.cpp")
    flags = ["-O3", "-std=c++17", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC"]
    machine = {"AVX2": "x86-64-v3", "AVX512": "x86-64-v4"}
    if march := machine.get(torch.backends.cpu.get_cpu_capability()):
        flags.append(f"-march={march}")
    compiler = os.environ.get("CXX") or shutil.which("c++") or "c++"
    command = [compiler, *flags, str(source)]
    key = hashlib.sha256(source.read_bytes() + " ".join(command).encode()).hexdigest()[:16]
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dca-gpt"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"kernels-{key}.so"
        if not path.exists():  # several processes may build it: each its own, the last one stays
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                built = Path(scratch, path.name)
                subprocess.run([*command, "-o", str(built)], check=True, capture_output=True)
                built.replace(path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", b"").decode().strip() or str(error)
        warnings.warn(f"without its compiled kernels the model is slower: {reason}", stacklevel=2)
        return None


def _shape(rows: int, b_ond: Tensor, norm: bool, eps: float) -> tuple[Any, ...]:
    outputs, n, width = b_ond.shape
    threads = min(torch.get_num_threads(), 1 + rows // ROWS_OF_A_THREAD)
    return ctypes.c_long(rows), n, width, outputs, int(norm), ctypes.c_float(eps), threads


def _at(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _array(tensors: list[Tensor] | list[Tensor | None]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*map(_at, tensors))
