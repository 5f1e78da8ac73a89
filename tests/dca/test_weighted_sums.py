"""Weighted sums, by the kernels and in PyTorch's own operations, against their equations."""

import random
import shutil
from functools import partial

import pytest
import torch
from torch import Tensor

from dca import kernels, mix
from tests.dca import reference

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


class Case:
    """Inputs of `weighted_sums` in float64, and the gradients that its outputs receive."""

    def __init__(self, seed: int = 0, *, types: tuple[torch.dtype, ...] = (F32,), **given) -> None:
        """What is not given is drawn: o outputs, n entries, g groups, which weights and norms."""
        draw = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        o = given.get("o", draw.randint(1, 5))
        n = given.get("n", draw.choice([1, 2, 3, 4, 5, 7, 8, 9, draw.randint(10, 50)]))
        g = given.get("g", draw.choice(given.get("groups", [None, None, 1, 2, 8])))
        b, t = given.get("rows", draw.choice([(1, 1), (2, 3), (3, 5)]))
        width = (g or 1) * 16 * draw.choice(given.get("widths", [1, 2, 3]))
        kind = given.get("kind", draw.choice(["weights", "weights", "scalars", "b", "both"]))
        normed = given.get("normed", [draw.random() < 0.5 for _ in range(o)])
        raw = given.get("raw", [draw.random() < 0.5 for _ in range(o)])
        self.raw = [want or not norm for want, norm in zip(raw, normed, strict=True)]
        self.types = [draw.choice(types) for _ in range(n)]
        self.entries = [self.random(b, t, width).to(x).double() for x in self.types]
        groups = [] if g is None else [g]
        static = draw.choice([None, 1]) if kind == "weights" else 1 if kind == "scalars" else width
        self.weights = self.random(b, t, o, n, *groups) if kind in ("weights", "both") else None
        self.b_ond = self.random(o, n, static) if static else None
        self.gains = [self.random(width) if norm else None for norm in normed]
        self.upstream: list[Tensor | None] = [
            self.random(b, t, width) if draw.random() < given.get("read", 0.8) else None
            for _ in range(sum(self.raw) + sum(normed) + n)
        ]
        self.upstream[0] = self.random(b, t, width)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=F64)

    def run(self, function, dtype: torch.dtype) -> list[Tensor]:
        """Outputs, then the gradients of entries, weights, b and gains."""

        def leaf(x: Tensor | None, dtype: torch.dtype = dtype) -> Tensor | None:
            return None if x is None else x.to(dtype, copy=True).requires_grad_()

        types = self.types if dtype == F32 else [dtype] * len(self.entries)
        entries = [leaf(f, one) for f, one in zip(self.entries, types, strict=True)]
        weights, b_ond, gains = leaf(self.weights), leaf(self.b_ond), [leaf(x) for x in self.gains]
        sums, normed, threaded = function(entries, weights, b_ond, gains, raw=self.raw)
        outputs = [*sums, *normed, *threaded]
        read = [(x, u) for x, u in zip(outputs, self.upstream, strict=True) if u is not None]
        loss = sum((x * u.to(x.dtype)).sum() for x, u in read)
        leaves = [x for x in (*entries, weights, b_ond, *gains) if x is not None]
        return [*outputs, *torch.autograd.grad(loss, leaves, materialize_grads=True)]

    def check(self, tolerance: float, dtype: torch.dtype = F32) -> list[Tensor]:
        ours, theirs = self.run(mix.weighted_sums, dtype), self.run(equations, F64)
        for at, (x, y) in enumerate(zip(ours, theirs, strict=True)):
            # small sums of large terms are no more precise
            error, scale = (x.double() - y).abs().max(), y.abs().max()
            assert error <= tolerance * scale + 1e-30, (at, error, scale)
        return ours


def equations(entries, weights, b_ond, gains, raw):
    """With one weight per token, output, entry and feature."""
    width = entries[0].shape[-1]
    factors = 0.0 if b_ond is None else b_ond
    if weights is not None:
        weights = weights[..., None] if weights.dim() == 4 else weights
        factors = factors + weights.repeat_interleave(width // weights.shape[-1], -1)
    sums = [g.sum(-2) for g in (factors * torch.stack(entries, 2)[:, :, None]).unbind(2)]
    normed = [
        reference.rms_norm(g, gain) for g, gain in zip(sums, gains, strict=True) if gain is not None
    ]
    return [g for g, want in zip(sums, raw, strict=True) if want], normed, entries


@pytest.fixture
def fused(monkeypatch) -> list[int]:
    """The number of calls of the kernels, which have to be there."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    assert kernels.library() is not None
    calls: list[int] = []
    forward = kernels.sums_forward
    monkeypatch.setattr(
        kernels, "sums_forward", lambda *args, **how: calls.append(1) or forward(*args, **how)
    )
    return calls


@pytest.mark.parametrize("seed", range(12))
def test_sums_in_torch_equal_the_equations(seed):
    Case(seed).check(1e-11, F64)


@pytest.mark.parametrize("seed", range(40))
def test_sums_of_the_kernels_equal_the_equations(seed, fused):
    Case(seed).check(1e-5)
    assert fused


@pytest.mark.parametrize("seed", range(12))
def test_rows_of_bfloat16_are_taken_beside_float32(seed, fused):
    case = Case(seed, types=(F32, BF16))
    ours = case.check(2e-2)
    assert fused
    outputs = sum(case.raw) + sum(x is not None for x in case.gains)
    n = len(case.entries)
    assert {x.dtype for x in ours[:outputs]} == {case.types[0]}
    assert [x.dtype for x in ours[outputs + n : outputs + 2 * n]] == case.types
    assert {x.dtype for x in ours[outputs + 2 * n :]} <= {F32}


class Chain:
    """Two readers of the same entries, and what the first hands to the second."""

    def __init__(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        draw = [torch.randn(2, 3, 32, generator=generator, dtype=F64) for _ in range(3)]
        self.entries = [f.to(dtype).requires_grad_() for f in draw]
        weights = [torch.randn(2, 3, 2, 3, generator=generator, dtype=F64).to(dtype) for _ in "12"]
        first, _, between = mix.weighted_sums(self.entries, weights[0])
        self.between = [f * 1 if f is e else f for f, e in zip(between, self.entries, strict=True)]
        second, _, _ = mix.weighted_sums(self.between, weights[1])
        self.loss = sum(x.square().sum() for x in (*first, *second))


def test_a_gradient_is_added_to_in_the_memory_of_the_later_reader(fused, monkeypatch):
    addresses = []
    backward = kernels.sums_backward

    def spied(*args, **how):
        later, to_entries = args[-2:]
        addresses.append(
            [[x is not None and x.data_ptr() for x in xs] for xs in (later, to_entries)]
        )
        return backward(*args, **how)

    monkeypatch.setattr(kernels, "sums_backward", spied)
    chain = Chain(F32)
    torch.autograd.grad(chain.loss, chain.entries)
    (_, of_second), (later, of_first) = addresses
    assert of_second == later == of_first


@pytest.mark.parametrize("holder", ["nothing", "capture", "hook", "sum", "expanded"])
def test_a_gradient_that_something_else_holds_is_not_written_to(holder, fused):
    results = []
    for dtype in (F32, F64):
        chain = Chain(dtype)
        loss, wanted, kept = chain.loss, [*chain.entries], {}
        if holder == "capture":
            wanted += chain.between
        if holder == "hook":
            for i, f in enumerate(chain.between):
                f.register_hook(partial(kept.__setitem__, i))
        if holder == "sum":  # both terms receive the same tensor
            others = [torch.ones_like(f, requires_grad=True) for f in chain.entries]
            terms = [f + x for f, x in zip(chain.between, others, strict=True)]
            loss = loss + sum(x.square().sum() for x in terms)
            wanted += others
        if holder == "expanded":
            loss = loss + sum(f.sum() for f in chain.between)
        gradients = torch.autograd.grad(loss, wanted)
        results.append([*gradients, *(kept[i] for i in sorted(kept))])
    assert len(results[0]) == len(results[1])
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=1e-5)
