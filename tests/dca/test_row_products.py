"""Products of rows with a few vectors: the kernels, PyTorch's own operations and the equations."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from dca import kernels
from dca.layers import row_products

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
SIZES = [(1, 1, 1), (6, 1, 13), (16, 2, 8), (24, 1, 21), (33, 4, 12), (70, 1, 5)]
"""Vectors, heads, rows: of whole groups of rows and lanes, and what is left over."""


class Case:
    """Inputs in one type, of values that bfloat16 has too, and gradients of all results."""

    def __init__(self, sizes: tuple[int, int, int], dtype: torch.dtype, weights: torch.dtype):
        vectors, heads, rows = sizes
        draw = partial(torch.randn, generator=torch.Generator().manual_seed(vectors), dtype=BF16)
        self.heads, self.x = heads, draw(2, rows, 64).to(dtype).requires_grad_()
        self.w = draw(vectors, 64).to(weights).requires_grad_()
        self.gradients = [draw(vectors, heads, 2, rows), draw(2, rows), draw(2, rows, 64)]

    def results(self, which: tuple[int, ...]) -> list[torch.Tensor]:
        """The results, and the gradients of x and w from those of the results in `which`."""
        products, square, x = row_products(self.x, self.w, heads=self.heads)
        found = [products.reshape(len(self.w), self.heads, *square.shape), square, x]
        given = [self.gradients[i].to(found[i].dtype) for i in which]
        wanted = torch.autograd.grad([found[i] for i in which], [self.x, self.w], given)
        return [*found, *wanted]

    def expected(self, which: tuple[int, ...]) -> list[torch.Tensor]:
        """The same by the equations, in float64."""
        x, w = (one.detach().double().requires_grad_() for one in (self.x, self.w))
        parts, vectors = (one.unflatten(-1, (self.heads, -1)) for one in (x, w))
        products = torch.einsum("bthe,rhe->rhbt", parts, vectors)
        found = [products, x.square().mean(-1), x * 1]
        total = sum((found[i] * self.gradients[i].double()).sum() for i in which)
        wanted = torch.autograd.grad(total, [x, w], materialize_grads=True)
        return [*found, *wanted]


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Names of the kernels that are called."""
    assert kernels.library() is not None
    found: list[str] = []
    for name in ("row_products", "add_row_products_gradient"):
        monkeypatch.setattr(kernels, name, partial(_counted, found, name, getattr(kernels, name)))
    return found


def _counted(calls: list[str], name: str, kernel: Callable[..., Any], *given: Any) -> Any:
    calls.append(name)
    return kernel(*given)


@pytest.mark.parametrize("which", [(0,), (0, 1), (0, 1, 2), (0, 2)])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-12), (F32, 1e-5), (BF16, 1e-2)])
def test_products_and_gradients_are_those_of_the_equations(sizes, which, dtype, tolerance, calls):
    case = Case(sizes, dtype, F64 if dtype == F64 else F32)
    ours, theirs = case.results(which), case.expected(which)
    assert calls == [] if dtype == F64 else ["row_products", "add_row_products_gradient"]
    types = [case.w.dtype, case.w.dtype, dtype, dtype, case.w.dtype]
    assert [x.dtype for x in ours] == types
    for mine, right in zip(ours, theirs, strict=True):
        error = (mine.double() - right).norm() / right.norm().clamp(min=1e-6)
        assert error < tolerance


def test_two_threads_give_the_sums_of_both(calls):
    case = Case((24, 1, 700), F32, F32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert kernels._threads(2 * 700 * 64 * 24) == 2
        ours = case.results((0, 1, 2))
    finally:
        torch.set_num_threads(before)
    for mine, right in zip(ours, case.expected((0, 1, 2)), strict=True):
        assert (mine.double() - right).norm() < 1e-5 * right.norm()


@pytest.mark.parametrize("width", [40, 24])
def test_other_widths_take_pytorchs_operations(width, calls):
    """Heads of other than whole vectors of numbers, and rows of such."""
    x = torch.randn(2, 3, width)
    row_products(x, torch.randn(5, width))
    row_products(torch.randn(2, 3, 32), torch.randn(5, 32), heads=4)
    assert calls == []


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("dtype", [F64, F32])
def test_the_later_readers_gradient_is_added_to_in_place_unless_it_is_held(held, dtype):
    case, kept, seen = Case((6, 1, 13), dtype, dtype), [], []
    products, _, again = row_products(case.x, case.w)
    later = torch.full_like(case.x, 2.0)

    class Reader(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum()

        @staticmethod
        def backward(ctx, _):
            made = later.clone()
            seen.append(made.data_ptr())
            if held:
                kept.append(made)
            return made

    (found,) = torch.autograd.grad(products.sum() + Reader.apply(again), [case.x])
    assert (found.data_ptr() == seen[0]) is not held
    assert all(torch.equal(one, later) for one in kept)
    torch.testing.assert_close(found, later + case.w.sum(0))
