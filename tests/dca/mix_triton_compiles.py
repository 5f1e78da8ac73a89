"""The Triton kernels through the compiler, which forgives less than the interpreter.

A driver that names a GPU is all the compiler needs; nothing runs. test_mix_triton.py starts this.
"""

from itertools import product

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from dca.fused import mix_triton, mix_triton_kernels


class H100:
    """What the compiler asks of a driver."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


class Compiled:
    """Stands for a kernel: compiles for the arguments of each launch, and launches nothing."""

    def __init__(self, kernel) -> None:
        self.kernel = kernel
        self.hashes: list[str] = []

    def __getitem__(self, grid):
        return lambda *args, **options: self.hashes.append(
            self.kernel.warmup(*args, grid=grid, **options).hash
        )


@pytest.fixture
def kernels(monkeypatch) -> tuple[Compiled, Compiled]:
    driver.set_active(H100())
    pair = Compiled(mix_triton_kernels.forward), Compiled(mix_triton_kernels.backward)
    monkeypatch.setattr(mix_triton_kernels, "forward", pair[0])
    monkeypatch.setattr(mix_triton_kernels, "backward", pair[1])
    return pair


def launch(o, n, d, *, has_w=True, norm=True, tokens=16, dtype=torch.float32, given=True) -> None:
    """Forward and backward; the first entry is float32, the others `dtype`."""
    entries = [torch.empty(tokens, d, dtype=dtype if i else torch.float32) for i in range(n)]
    parameters = torch.empty(o, n, d), torch.empty(o, d) if has_w else None, torch.empty(o, d)
    how = {"norm": norm, "eps": 1e-6}
    skip, normed, saved = mix_triton.mix_forward(entries, *parameters, **how)
    gradients = (skip, normed, entries) if given else (None, [None] * o, [None] * n)
    mix_triton.mix_backward(entries, *parameters, saved, *gradients, entries, **how)


SHAPES = (3, 4, 256), (2, 4, 64), (1, 5, 48)
KINDS = (True, True), (True, False), (False, True)
TYPES = torch.bfloat16, torch.float32
EACH = list(zip(SHAPES, KINDS, (*TYPES, TYPES[1]), strict=True))
"""Each shape, kind and type once; the other combinations are compiled by `make test-faults`."""


@pytest.mark.parametrize(
    ("shape", "kind", "dtype"),
    [
        pytest.param(*one, marks=() if one in EACH else pytest.mark.faults)
        for one in product(SHAPES, KINDS, TYPES)
    ],
)
def test_every_kind_compiles(kernels, shape, kind, dtype):
    has_w, norm = kind
    launch(*shape, has_w=has_w, norm=norm, dtype=dtype)
    assert all(kernel.hashes for kernel in kernels)


def test_one_kernel_serves_any_tokens_and_missing_gradients(kernels):
    for tokens, given in product([1, 7, 16, 1000], [True, False]):
        launch(1, 3, 64, tokens=tokens, given=given, dtype=torch.bfloat16)
    assert [len(set(kernel.hashes)) for kernel in kernels] == [1, 1]


def test_large_stacks_share_kernels(kernels):
    for n in (9, 12, 13):
        launch(1, n, 64)
    forward, backward = kernels
    assert len(set(forward.hashes)) == 2  # for 12 and 16 entries
    assert len(set(backward.hashes)) == 2 + 2  # and groups of 4 and 1


@pytest.fixture
def sums_kernels(monkeypatch) -> dict[str, Compiled]:
    driver.set_active(H100())
    found = {}
    for name in ("sums_forward", "sums_norms", "sums_spread"):
        found[name] = Compiled(getattr(mix_triton_kernels, name))
        monkeypatch.setattr(mix_triton_kernels, name, found[name])
    return found


def launch_sums(o, n, d, *, g=1, kind="weights", normed=1, tokens=16, given=True) -> None:
    """Forward and backward; the first entry is float32, the others bfloat16."""
    entries = [
        torch.empty(tokens, d, dtype=torch.bfloat16 if i else torch.float32) for i in range(n)
    ]
    weights = None if kind == "b" else torch.empty(tokens, o, n, g)
    b_ond = None if kind == "weights" else torch.empty(o, n, d)
    gains = [torch.empty(d) if i < normed else None for i in range(o)]
    raw = [gain is None for gain in gains]
    _, _, rho = mix_triton.sums_forward(entries, weights, b_ond, gains, raw, eps=1e-6)
    d_raw = [entries[0] if want and given else None for want in raw]
    dy = [None if want else entries[0] for want in raw]
    inputs = (entries, weights, b_ond, gains, rho, d_raw, dy, entries if given else [None] * n)
    mix_triton.sums_backward(*inputs, entries, needed=(True, True), eps=1e-6)


@pytest.mark.parametrize(
    ("o", "n", "d", "how"),
    [
        (4, 5, 48, {"normed": 3}),
        (2, 3, 64, {"kind": "both", "g": 2}),
    ],
)
def test_weighted_sums_compile(sums_kernels, o, n, d, how):
    launch_sums(o, n, d, **how)
    assert all(kernel.hashes for kernel in sums_kernels.values())


def test_weighted_sums_share_kernels(sums_kernels):
    for n in (9, 12):
        launch_sums(1, n, 64, normed=0, tokens=n, given=n > 9)
    assert len(set(sums_kernels["sums_forward"].hashes)) == 1  # for 12 entries
    assert len(set(sums_kernels["sums_spread"].hashes)) == 3  # of 8, 4 and 1
