"""The C++ kernels of kernels.cpp, compiled at their first use by the machine's compiler.

Every function takes dense tensors on the CPU, of float32 except for the rows that are mixed. Where
there is no compiler, `library` is None and the callers use PyTorch's own operations.
"""

import ctypes
import hashlib
import os
import shlex
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dca.compat import CPU_TARGETS

LANES = 16
"""Widths are multiples of this."""
FEW_ROWS = 8
"""Rows up to which `linear` is faster than PyTorch's matrix product, which is made for many."""
THREAD_NUMBERS = 1 << 17
"""Numbers per thread, below which starting another thread takes longer than it saves."""


def fits(*tensors: Tensor, types: tuple[torch.dtype, ...] = (torch.float32,)) -> bool:
    """Whether the kernels support these tensors, of these types, on this machine."""
    return (
        all(x.device.type == "cpu" and x.dtype in types for x in tensors)
        and tensors[0].shape[-1] % LANES == 0
        and library() is not None
    )


def linear(x: Tensor, weight: Tensor, *, gelu: bool) -> Tensor:
    """x [..., in] times weight [out, in] transposed, without gradient, for a few rows of x.

    With `gelu`, the exact GELU of that.
    """
    x, weight = x.contiguous(), weight.contiguous()
    y = x.new_empty(*x.shape[:-1], len(weight))
    outputs, width = weight.shape
    library().linear(
        ctypes.c_long(x.numel() // width), width, ctypes.c_long(outputs), int(gelu),
        _at(x), _at(weight), _at(y), _threads(weight.numel()),
    )  # fmt: skip
    return y


def fits_products(x_nd: Tensor, w_rd: Tensor, heads: int) -> bool:
    """Whether `row_products` supports these tensors."""
    types = (torch.float32, torch.bfloat16)
    return fits(w_rd) and fits(x_nd, types=types) and x_nd.shape[1] % (heads * LANES) == 0


def row_products(x_nd: Tensor, w_rd: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Products of n rows with r vectors, head by head, and the rows' mean squares, [n].

    Rows are float32 or bfloat16; w and the results, of which the first is [r, heads, n], float32.
    """
    x_nd, w_rd = x_nd.contiguous(), w_rd.contiguous()
    products_rhn = w_rd.new_empty(len(w_rd), heads, len(x_nd))
    square_n = w_rd.new_empty(len(x_nd))
    library().row_products(
        *_products_shape(x_nd, w_rd, heads), _at(x_nd), _at(w_rd), _at(products_rhn), _at(square_n)
    )
    return products_rhn, square_n


def add_row_products_gradient(
    x_nd: Tensor, w_rd: Tensor, g_rhn: Tensor | None, g_n: Tensor | None, to_x_nd: Tensor
) -> Tensor | None:
    """Adds the gradient of the rows to `to_x_nd`; returns that of w.

    g_rhn and g_n are the gradients of `row_products`' results, and None stands for zero.
    """
    x_nd, w_rd = x_nd.contiguous(), w_rd.contiguous()
    g_rhn, g_n = (None if g is None else g.contiguous() for g in (g_rhn, g_n))
    to_w_rd = None if g_rhn is None else torch.empty_like(w_rd)
    heads = 1 if g_rhn is None else g_rhn.shape[1]
    library().add_row_products_gradient(
        *_products_shape(x_nd, w_rd, heads), _at(x_nd), _at(w_rd), _at(g_rhn), _at(g_n),
        _at(to_x_nd), _at(to_w_rd),
    )  # fmt: skip
    return to_w_rd


def sinkhorn(matrices_nnt: Tensor, steps: int, gradient_nnt: Tensor | None = None) -> Tensor:
    """Matrices [n, n, t] divided in turn by their sums over the first and the second axis.

    Each of t tokens has a matrix; `steps` counts the divisions. With the gradient of the result,
    that of the matrices instead.
    """
    n, _, tokens = matrices_nnt.shape
    given = [x.contiguous() for x in (matrices_nnt, gradient_nnt) if x is not None]
    found = torch.empty_like(given[0])
    run = library().sinkhorn if gradient_nnt is None else library().sinkhorn_backward
    threads = _threads(given[0].numel() * steps)
    run(ctypes.c_long(tokens), n, steps, *map(_at, given), _at(found), threads)
    return found


def mix_forward(
    entries: list[Tensor],
    b_ond: Tensor,
    w_od: Tensor | None,
    gain_od: Tensor,
    *,
    norm: bool,
    eps: float,
) -> tuple[Tensor, list[Tensor], tuple[Tensor, ...]]:
    """Mix n entries [t, d] into o = 1, 2 or 3 outputs, as defined in `dca.mix.mix`.

    Entries are float32 or bfloat16, also side by side; g_0 has the type of the first, and the
    normed mixtures are bfloat16 if autocast to it is on. Parameters and sums are float32.

    Returns g_0 [t, d]; the normed mixtures, each [t, d]; and `saved` for `mix_backward`: of every
    row the scores before the clamp, 1 / rms of the entries, 1 / rms of the mixtures.
    """
    outputs, n, _ = b_ond.shape
    first = entries[0]
    dtype = _normed_type(first)
    skip, *normed = (torch.empty_like(first, dtype=t) for t in (None, *outputs * (dtype,)))
    saved = tuple(b_ond.new_empty(len(first), k) for k in (outputs * n, n, outputs))
    library().mix_forward(
        *_shape(len(first), b_ond, norm, eps), _half([*entries, skip, normed[0]]),
        _array(entries), _at(b_ond), _at(w_od),
        _at(gain_od), _at(skip), _array(normed), *map(_at, saved),
    )  # fmt: skip
    return skip, normed, saved


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
    """Writes the gradients of the entries; returns those of b, w (None without one) and the gains.

    `d_entries` are the gradients of each entry from its later readers, which are added. None stands
    for a gradient of zero. Gradients have the types of their tensors. Nothing but `to_entries` is
    modified; it may be the same memory as `d_entries`.
    """
    given = next((x for x in dy if x is not None), entries[0])
    to_b, to_gain = torch.empty_like(b_ond), torch.empty_like(gain_od)
    to_w = None if w_od is None else torch.empty_like(w_od)
    library().mix_backward(
        *_shape(len(entries[0]), b_ond, norm, eps), _half([*entries, entries[0], given]),
        _array(entries), _at(b_ond), _at(w_od), _at(gain_od), *map(_at, saved), _at(d_skip),
        _array(dy), _array(d_entries),
        _array(to_entries), _at(to_b), _at(to_w), _at(to_gain),
    )  # fmt: skip
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
    """Sums of n entries [t, d] with weights per token, as defined in `dca.mix.weighted_sums`.

    `weights` are [t, o, n, g], b is [o, n, d]; types are those of `mix_forward`. Returns the sums
    for which `raw` is set, those with a gain normed, and 1 / rms of each, for `sums_backward`.
    """
    first = entries[0]
    sums = [torch.empty_like(first) if want else None for want in raw]
    dtype = _normed_type(first)
    normed = [None if gain is None else torch.empty_like(first, dtype=dtype) for gain in gains]
    rho_to = first.new_empty(len(first), len(gains), dtype=torch.float32)
    half = _half([*entries, first, first.new_empty(0, dtype=dtype)])
    library().sums_forward(
        *_sums_shape(entries, weights, gains, eps), half, _array(entries), _at(weights),
        _at(b_ond), _array(gains), _at(rho_to), _array(sums), _array(normed),
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

    `d_raw` and `dy` have an item per output, and None is a gradient of zero; `d_entries` and
    `to_entries` are as in `mix_backward`. `needed` is whether the weights and b need gradients,
    which are float32.
    """
    given = next((x for x in dy if x is not None), entries[0])
    to_weights = torch.empty_like(weights) if weights is not None and needed[0] else None
    to_b = torch.empty_like(b_ond) if b_ond is not None and needed[1] else None
    to_gains = [None if gain is None else torch.empty_like(gain) for gain in gains]
    library().sums_backward(
        *_sums_shape(entries, weights, gains, eps), _half([*entries, entries[0], given]),
        _array(entries), _at(weights), _at(b_ond), _array(gains), _at(rho_to), _array(d_raw),
        _array(dy), _array(d_entries),
        _array(to_entries), _at(to_weights), _at(to_b), _array(to_gains),
    )  # fmt: skip
    return to_weights, to_b, to_gains


@lru_cache
def library() -> Any:
    """The compiled kernels; None, with one warning, where they cannot be built."""
    try:
        return ctypes.CDLL(str(_built()))
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        output = getattr(error, "stderr", b"").decode(errors="replace").strip()
        warnings.warn(f"slower without compiled kernels: {output or error}", stacklevel=2)
        return None


def _built() -> Path:
    """The library for this source, compiler and processor, in a folder of this user only."""
    source = Path(__file__).with_name("kernels.cpp").read_bytes()
    flags = ["-O3", "-std=c++17", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC"]
    if march := CPU_TARGETS.get(torch.backends.cpu.get_cpu_capability()):
        flags.append(f"-march={march}")
    command = [*shlex.split(os.environ.get("CXX") or "c++"), *flags, "-x", "c++", "-"]
    key = hashlib.sha256(source + " ".join(command).encode()).hexdigest()[:16]
    folder = _cache_folder()
    if {folder.lstat().st_uid, folder.stat().st_uid} != {os.getuid()}:  # a link of one's own may be
        raise OSError(f"{folder} belongs to another user")
    if folder.stat().st_mode & 0o022:
        raise OSError(f"{folder} can be written by other users")
    for path in folder.glob(f"kernels-{key}-*.so"):
        if path == _named(path, key):
            return path
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch, "kernels.so")
        subprocess.run([*command, "-o", built], input=source, check=True, capture_output=True)
        return built.replace(folder / _named(built, key).name)


def _cache_folder() -> Path:
    """The user's folder for caches, or, if that cannot be written, one beside temporary files."""
    with suppress(OSError, RuntimeError):  # no home at all is a RuntimeError
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dca-gpt"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK):
            return folder
    folder = Path(tempfile.gettempdir()) / f"dca-gpt-kernels-{os.getuid()}"
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder


def _named(path: Path, key: str) -> Path:
    """The path of a library beside it by its content: what was damaged or replaced differs."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.with_name(f"kernels-{key}-{digest}.so")


def _shape(rows: int, b_ond: Tensor, norm: bool, eps: float) -> tuple[Any, ...]:
    outputs, n, width = b_ond.shape
    threads = _threads(rows * n * width)
    return ctypes.c_long(rows), n, width, outputs, int(norm), ctypes.c_float(eps), threads


def _sums_shape(
    entries: list[Tensor], weights: Tensor | None, gains: Sequence[Tensor | None], eps: float
) -> tuple[Any, ...]:
    (rows, width), n = entries[0].shape, len(entries)
    groups = 1 if weights is None else weights.shape[-1]
    threads = _threads(rows * n * width)
    return ctypes.c_long(rows), n, width, len(gains), groups, ctypes.c_float(eps), threads


def _products_shape(x_nd: Tensor, w_rd: Tensor, heads: int) -> tuple[Any, ...]:
    (rows, width), vectors = x_nd.shape, len(w_rd)
    threads = _threads(rows * width * vectors)
    return ctypes.c_long(rows), width, vectors, heads, threads, _half([x_nd])


def _normed_type(first: Tensor) -> torch.dtype:
    """bfloat16 if autocast to it is on, else the type of the first entry."""
    rounded = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return torch.bfloat16 if rounded else first.dtype


def _threads(numbers: int) -> int:
    return min(torch.get_num_threads(), 1 + numbers // THREAD_NUMBERS)


def _half(tensors: list[Tensor]) -> Any:
    return (ctypes.c_int * len(tensors))(*(x.dtype == torch.bfloat16 for x in tensors))


def _at(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _array(tensors: Sequence[Tensor | None]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*map(_at, tensors))
