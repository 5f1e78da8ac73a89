"""The part of `make check-gpu` that compares the mixing's kernels with float64.

`dca.mix.mix` and `dca.mix.weighted_sums`, forward and backward: on a GPU the Triton kernels, on a
CPU those in C++, which the tests of this script compare. Shapes and types of the cases are drawn
with a fixed seed. A case is computed twice, on inputs that are drawn anew, in memory that is filled
with NaN: what a kernel leaves out, or keeps from before, is found.

Axes: b batch, t time, d model, n stack entries, o outputs, g groups of features.
"""

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from os import cpu_count
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.check import Check, Failed, Skipped
from dca import mix
from tests.dca import reference

DRAWN = 60
SEED = 0
SECONDS = 110
"""After which cases that have not begun are left out."""
MOST_PROCESSES = 16
MOST_NUMBERS = 2**22
"""Of entries [b, t, d] times n times o of a case: the reference keeps a dozen copies in float64."""
TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 1.2e-2}
"""Largest difference over the largest number of a tensor, by its type."""
FAR = 4.0
"""How far scores are from 0, where their gradient jumps: in standard deviations of a score."""


@dataclass(frozen=True)
class Case:
    """Shapes and types of one call."""

    n: int
    d: int
    outputs: int
    tokens: int
    first: torch.dtype = torch.float32
    others: torch.dtype = torch.float32
    scores: bool = True
    """For `mix`: whether there is a w."""
    norm: bool = True
    """For `mix`: whether w reads normed entries."""
    groups: int | None = None
    """For `weighted_sums`: groups of features; 0: no weights per token."""
    static: bool = True
    """For `weighted_sums`: whether there is b [o, n, d]."""

    @property
    def sums(self) -> bool:
        """Whether it is of `weighted_sums`."""
        return self.groups is not None


CORNERS = [
    *(Case(n, d, 3, 9) for n in (1, 4, 5, 60) for d in (64, 2048)),
    *(Case(n, 64, 1, 9, scores=False, norm=False) for n in (1, 2, 60)),
    Case(60, 2048, 3, 2, first=torch.bfloat16, others=torch.bfloat16),
    Case(2, 64, 2, 20_000, others=torch.bfloat16),
    *(Case(n, d, 5, 9, groups=1, static=False) for n in (1, 8, 9, 60) for d in (64, 2048)),
    Case(60, 2048, 5, 2, first=torch.bfloat16, others=torch.bfloat16, groups=8),
    Case(3, 64, 1, 20_000, groups=0),
]
"""The smallest and largest sizes, and those at which the launches change."""


def cases() -> list[Case]:
    """The corners, and cases that are drawn: as many of `mix` as of `weighted_sums`."""
    draw = random.Random(SEED)
    return [*CORNERS, *(_drawn(draw, sums=number % 2 == 1) for number in range(DRAWN))]


def _drawn(draw: random.Random, *, sums: bool) -> Case:
    n, outputs = draw.randint(1, 60), draw.randint(1, mix.MAX_SUMS if sums else 3)
    powers = draw.random() < 0.5
    d = 2 ** draw.randint(6, 11) if powers else 16 * draw.randint(4, 128)
    tokens = min(draw.choice([1, 7, 130, 3000]), max(1, MOST_NUMBERS // (n * d * outputs)))
    first, others = (draw.choice([torch.float32, torch.bfloat16]) for _ in "12")
    case = Case(n, d, outputs, tokens, first, others)
    if not sums:
        return replace(case, scores=draw.random() < 0.8, norm=draw.random() < 0.7)
    groups = draw.choice([0, 1, 2, 4]) if powers else draw.choice([0, 1])
    return replace(case, groups=groups, static=groups == 0 or draw.random() < 0.5)


class Inputs:
    """Random inputs of a case on the device, and the gradients that its outputs receive."""

    def __init__(self, case: Case, device: torch.device, seed: int) -> None:
        self.case, self.device = case, device
        self.generator = torch.Generator().manual_seed(seed)
        n, d, o, t = case.n, case.d, case.outputs, case.tokens
        types = [case.first, *[case.others] * (n - 1)]
        self.gains = [self.random(d) for _ in range(o)]
        self.w = self.random(o, d) / d**0.5 if case.scores and not case.sums else None
        self.b: Tensor | None = self.random(o, n, d) if case.static or not case.sums else None
        self.weights = self.random(1, t, o, n, case.groups) if case.groups else None
        self.entries = [self.entry().to(dtype) for dtype in types]
        upstream = [case.first] * (2 * o if case.sums else 1 + o) + types
        missing = range(len(upstream) - n, len(upstream), 3)  # readers of an entry: none later
        self.upstream = [
            None if at in missing else self.random(1, t, d).to(dtype)
            for at, dtype in enumerate(upstream)
        ]

    def random(self, *shape: int) -> Tensor:
        """Normal numbers, the same on every device."""
        return torch.randn(shape, generator=self.generator).to(self.device)

    def entry(self) -> Tensor:
        """[1, t, d], whose scores are far from 0 on either side."""
        f_1td = self.random(1, self.case.tokens, self.case.d)
        if self.w is not None:
            sides_1to = torch.where(self.random(1, self.case.tokens, len(self.w)) > 0, FAR, -FAR)
            f_1td = f_1td + sides_1to @ torch.nn.functional.normalize(self.w, dim=-1)
        return f_1td

    def results(self, function: Callable[..., list[Tensor]], *, wide: bool) -> list[Tensor]:
        """Outputs, entries for the next reader, and the gradients of all that is given."""

        def leaf(x: Tensor | None) -> Any:
            given = None if x is None else x.double() if wide else x.clone()
            return None if given is None else given.requires_grad_()

        entries, gains = [leaf(f) for f in self.entries], [leaf(x) for x in self.gains]
        rest = [leaf(x) for x in (self.weights, self.b, self.w)]
        outputs = [*function(self.case, entries, gains, *rest), *entries][: len(self.upstream)]
        pairs = zip(outputs, self.upstream, strict=True)
        read = [(x, u.to(x.dtype)) for x, u in pairs if u is not None]
        leaves = [x for x in (*entries, *gains, *rest) if x is not None]
        found = torch.autograd.grad(
            [x for x, _ in read], leaves, [u for _, u in read], allow_unused=True
        )
        return [*outputs, *(torch.zeros(1) if x is None else x for x in found)]


def ours(
    case: Case,
    entries: list[Tensor],
    gains: list[Tensor],
    weights: Tensor | None,
    b: Tensor | None,
    w: Tensor | None,
) -> list[Tensor]:
    """By the kernels."""
    if case.sums:
        raw = [True] * case.outputs
        sums, normed, later = mix.weighted_sums(entries, weights, b, gains, raw=raw)
        return [*sums, *normed, *later]
    assert b is not None
    skip, normed, later = mix.mix(entries, b, w, gains, norm=case.norm)
    return [skip, *normed, *later]


def theirs(
    case: Case,
    entries: list[Tensor],
    gains: list[Tensor],
    weights: Tensor | None,
    b: Tensor | None,
    w: Tensor | None,
) -> list[Tensor]:
    """By the equations."""
    if not case.sums:
        mixtures = reference.mixtures(entries, b, w, norm=case.norm)
    else:
        mixtures = []
        for o in range(case.outputs):
            factors: Any = 0.0 if b is None else b[o]
            if weights is not None:
                repeats = case.d // weights.shape[-1]
                factors = factors + weights[:, :, o].repeat_interleave(repeats, -1)
            mixtures.append((factors * torch.stack(entries, -2)).sum(-2))
    normed = [reference.rms_norm(g, gain) for g, gain in zip(mixtures, gains, strict=True)]
    return [*(mixtures if case.sums else mixtures[:1]), *normed]


def worst(case: Case, device: torch.device, seed: int) -> tuple[float, str]:
    """The largest error of a case, over the tolerance, and of which tensor."""
    found = [(0.0, "none")]
    for again in range(2):
        inputs = Inputs(case, device, 2 * seed + again)
        if not _has_kernels(case, inputs.entries):
            raise (Failed if device.type == "cuda" else Skipped)(f"no kernel takes {case}")
        with poisoned():
            computed = inputs.results(ours, wide=False)
        for at, (x, y) in enumerate(zip(computed, inputs.results(theirs, wide=True), strict=True)):
            if not x.isfinite().all():
                return float("inf"), f"tensor {at} of {case}: not finite"
            error = (x.to(y.device).double() - y).abs().max() / y.abs().max().clamp(min=1e-30)
            found.append((error.item() / TOLERANCE[x.dtype], f"tensor {at} of {case}"))
    return max(found)


def _has_kernels(case: Case, entries: list[Tensor]) -> bool:
    if case.sums:
        return mix._kernels_of_sums(entries, case.outputs, case.groups or 1) is not None
    return mix._kernels(entries, case.outputs) is not None


@contextmanager
def poisoned() -> Iterator[None]:
    """New memory is filled with NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def kernels(check: Check) -> dict[str, Any]:
    """The largest error of all cases. They are shared by processes, which also compile at once."""
    given = cases()
    if check.on_gpu:
        results = list(_in_processes(given, check.device))
    else:
        results = [worst(case, check.device, number) for number, case in enumerate(_small(given))]
    wrong = [f"{share:.3g} of the tolerance, {where}" for share, where in results if not share <= 1]
    if wrong or not results:
        raise Failed(f"{len(wrong)} of {len(results)} cases: {'; '.join(wrong)}")
    share, where = max(results)
    return {
        "cases": len(results),
        "left_out": len(given) - len(results) if check.on_gpu else 0,
        "largest_error_over_tolerance": share,
        "in": where,
    }


def _small(given: list[Case]) -> list[Case]:
    """Cases with few tokens, for a CPU."""
    return [replace(case, tokens=min(case.tokens, 3)) for case in given if case.n * case.d < 4000]


def _in_processes(given: list[Case], device: torch.device) -> Iterator[tuple[float, str]]:
    """`worst` of each case, until the time is over; those that compile longest begin first."""
    longest_first = sorted(enumerate(given), key=lambda one: -one[1].n * one[1].outputs)
    until = time.monotonic() + SECONDS
    processes = min(MOST_PROCESSES, cpu_count() or 1)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(_before, until, *one, device) for one in longest_first]
        for done in as_completed(waiting):
            if (result := done.result()) is not None:
                yield result


def _before(
    until: float, number: int, case: Case, device: torch.device
) -> tuple[float, str] | None:
    """`worst` of a case; None if that time is over."""
    return worst(case, device, number) if time.monotonic() < until else None
