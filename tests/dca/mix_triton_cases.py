"""The Triton kernels against their equations; test_mix_triton.py says where this runs."""

import itertools
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction

from dca import mix
from dca.fused import mix_triton
from tests.dca import reference, test_weighted_sums

EPS = 1e-6
PREPARED: set[str] = set()
"""Modules with device functions that the interpreter has prepared the language for."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FAULTS = pytest.mark.faults
"""Of cases that `make test-faults` runs: here another one has each of their values."""


def call(function: InterpretedFunction, *args, **kwargs):
    """A device function, interpreted without preparing the language for each of its calls.

    A kernel's launch has done that already, and it takes most of the interpreter's time.
    """
    if function.fn.__module__ not in PREPARED:
        interpreter._patch_lang(function.fn)
        PREPARED.add(function.fn.__module__)
    return function.rewrite()(*args, **kwargs)


@pytest.fixture(scope="module", autouse=True)
def prepared_once() -> Iterator[None]:
    with mock.patch.object(InterpretedFunction, "__call__", call):
        yield


class Case:
    """Random inputs on the device, and the same in float64 for the equations."""

    def __init__(self, o, n, d, *, has_w=True, norm=True, types=(), tokens=3):
        self.generator = torch.Generator().manual_seed(0)
        self.norm = norm
        types = [*types, *[torch.float32] * n][:n]
        self.entries = [self.random(tokens, d).to(dtype) for dtype in types]
        self.b, self.gain = self.random(o, n, d), self.random(o, d)
        self.w = self.random(o, d) / d**0.5 if has_w else None
        self.outer: list[Tensor | None] = [
            self.random(tokens, d).to(types[0]) for _ in range(1 + o)
        ]
        self.later: list[Tensor | None] = [self.random(tokens, d).to(dtype) for dtype in types]

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(DEVICE)

    def ours(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """Outputs, then the gradients of entries, b, w and gain."""
        inputs = (self.entries, self.b, self.w, self.gain)
        how = {"norm": self.norm, "eps": EPS}
        skip, normed, saved = mix_triton.mix_forward(*inputs, **how)
        d_skip, *dy = self.outer
        to_entries = [torch.empty_like(f) for f in self.entries]
        to_parameters = mix_triton.mix_backward(
            *inputs, saved, d_skip, dy, self.later, to_entries, **how
        )
        return [skip, *normed], [*to_entries, *to_parameters]

    def theirs(self) -> tuple[list[Tensor], list[Tensor | None]]:
        inputs = [None if x is None else x.double().requires_grad_() for x in self.inputs()]
        *entries, b, w, gain = inputs
        mixtures = reference.mixtures(entries, b, w, norm=self.norm)
        normed = [reference.rms_norm(g, one) for g, one in zip(mixtures, gain, strict=True)]
        outputs = [mixtures[0], *normed]
        pairs = [(y, dy) for y, dy in zip(outputs, self.outer, strict=True) if dy is not None]
        pairs += [(f, df) for f, df in zip(entries, self.later, strict=True) if df is not None]
        sum((x * dx.double()).sum() for x, dx in pairs).backward()
        return outputs, [None if x is None else x.grad for x in inputs]

    def inputs(self) -> list[Tensor | None]:
        return [*self.entries, self.b, self.w, self.gain]

    def check(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """Require the equations, and return what the kernels have made."""
        made = self.ours()
        for ours, theirs in zip(made, self.theirs(), strict=True):
            for at, (x, y) in enumerate(zip(ours, theirs, strict=True)):
                if y is None:
                    assert x is None or not x.any(), at
                    continue
                tolerance = 1e-5 if x.dtype == torch.float32 else 1e-2
                scale = y.abs().max().item()  # small sums of large terms are no more precise
                torch.testing.assert_close(
                    x.double(), y, rtol=tolerance, atol=tolerance * scale,
                    msg=lambda m, at=at: f"tensor {at}: {m}",
                )  # fmt: skip
        return made


SHAPES = [(1, 1, 16), (3, 1, 48), (2, 4, 48), (3, 4, 16), (1, 7, 48), (3, 7, 16)]
"""Each number of outputs with each of entries, or of widths; the other shapes: `make test-faults`.
"""
OTHERS = [*itertools.product([1, 3], [1, 4, 7], [16, 48])]


@pytest.mark.parametrize(
    ("o", "n", "d"),
    [*SHAPES, *(pytest.param(*s, marks=FAULTS) for s in OTHERS if s not in SHAPES)],
)
def test_outputs_and_gradients_equal_the_equations(o, n, d):
    Case(o, n, d).check()


@pytest.mark.parametrize(("has_w", "norm"), [(True, False), (False, True)])
@pytest.mark.parametrize(
    ("o", "n"), [(1, 5), (3, 2), *(pytest.param(*s, marks=FAULTS) for s in [(1, 2), (3, 5)])]
)
def test_w_and_its_norm_are_optional(o, n, has_w, norm):
    Case(o, n, 48, has_w=has_w, norm=norm).check()


def test_large_stack():
    Case(1, 11, 144).check()


def test_scores_of_zero_have_a_gradient():
    case = Case(1, 2, 16)
    case.w.zero_()
    assert case.check()[1][-2].any()


@pytest.mark.parametrize("n", [5, pytest.param(2, marks=FAULTS)])
@pytest.mark.parametrize(
    ("outer", "later"), [([0], [1]), ([2], "all"), ([1, 2, 3], [])], ids=["skip", "one", "all"]
)
def test_a_missing_gradient_is_zero(n, outer, later):
    """Of outputs, the skip and the normed ones, and from later readers of the entries."""
    case = Case(3, n, 16)
    for at in outer:
        case.outer[at] = None
    for at in range(n) if later == "all" else later:
        case.later[at] = None
    case.check()


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize("first", [torch.float32, torch.bfloat16])
def test_each_tensor_has_its_own_type(n, first):
    case = Case(1, n, 48, types=[first] + [torch.bfloat16] * (n - 1))
    outputs, (*to_entries, to_b, to_w, to_gain) = case.check()
    assert all(y.dtype == first for y in outputs)
    assert [x.dtype for x in to_entries] == [f.dtype for f in case.entries]
    assert all(x.dtype == torch.float32 for x in (to_b, to_w, to_gain))


@pytest.mark.parametrize("n", [2, 6])
def test_nothing_given_is_written_to(n):
    case = Case(1, n, 16)
    given = [*case.inputs(), *case.outer, *case.later]
    before = [x.clone() for x in given]
    outputs, gradients = case.ours()
    assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True))
    storages = [x.untyped_storage().data_ptr() for x in (*given, *outputs, *gradients[:n])]
    assert len(set(storages)) == len(storages)


def test_the_model_calls_them_as_they_want_to_be_called(monkeypatch):
    """Through dca.mix, as under autocast: a float32 stream, and a bfloat16 output added to it."""
    monkeypatch.setattr(mix, "_kernels", lambda *_: mix_triton)
    stream, output = torch.randn(2, 2, 5, 48, device=DEVICE).unbind()
    norm = torch.nn.RMSNorm(48, eps=EPS, device=DEVICE)
    leaves = [stream.requires_grad_(), output.bfloat16().requires_grad_(), norm.weight]
    results = []
    for _ in range(2):
        total, normed = mix.sum_and_norm(leaves[:2], norm)
        assert total.dtype == normed.dtype == torch.float32
        gradients = torch.autograd.grad((total * total + normed.sin()).sum(), leaves)
        results.append([total, normed, *gradients])
        monkeypatch.setattr(mix, "_kernels", lambda *_: None)
    for fused, plain in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-2, atol=1e-4)


class Sums(test_weighted_sums.Case):
    """On the device; more groups than one need a width that is a power of two."""

    def random(self, *shape: int) -> Tensor:
        return super().random(*shape).to(DEVICE)


@pytest.fixture
def launches(monkeypatch) -> None:
    """Sums of the kernels, whatever the device; float64 stays with PyTorch's own operations."""
    found = {torch.float64: None}
    monkeypatch.setattr(mix, "_kernels_of_sums", lambda f, *_: found.get(f[0].dtype, mix_triton))


@pytest.mark.parametrize(
    "seed", [seed if seed > 3 else pytest.param(seed, marks=FAULTS) for seed in range(8)]
)
def test_weighted_sums_equal_the_equations(seed, launches):
    Sums(seed, n=1 + seed, rows=(1, 3), groups=[None, 1, 2, 8], widths=[1, 2]).check(1e-5)


@pytest.mark.parametrize("kind", ["weights", "b", "both"])
def test_weighted_sums_of_many_entries(kind, launches):
    Sums(n=13, o=2, rows=(1, 3), g=None, kind=kind, normed=[True, False]).check(1e-5)


def test_weighted_sums_of_each_type(launches):
    types = torch.float32, torch.bfloat16
    Sums(3, n=5, rows=(1, 3), g=4, types=types).check(2e-2)
