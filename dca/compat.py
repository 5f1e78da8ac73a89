"""Behaviour of PyTorch that the model relies on and the documentation does not promise.

Used by dca.config, dca.kernels, dca.layers and dca.fused. Each name has its reason; a test fails
when PyTorch changes it.
"""

import sys
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

CPU_TARGETS = {"AVX2": "x86-64-v3", "AVX512": "x86-64-v4"}
"""Values of torch.backends.cpu.get_cpu_capability, whose texts are not documented, and the compiler
target that the same processor supports."""


class SkipInitialisation(TorchFunctionMode):
    """Context in which the functions of torch.nn.init that draw values leave their tensor as it is.

    Drawing random values on the meta device imports PyTorch's compiler, which takes 2 s. Relies on
    these functions' dispatch to a function mode, their module's name, and their first parameter,
    `tensor`.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


class CpuAttention(torch.autograd.Function):
    """Causal attention of bfloat16 queries, keys and values [b, h, t, e], for training on a CPU.

    Forward it is PyTorch's own. Its gradients are computed in float32: PyTorch's kernel for them
    takes 1.5 to 2 times as long in bfloat16 at 256 positions and heads of 32, and is never faster.
    Relies on the operators that F.scaled_dot_product_attention calls, and on the meaning of their
    second result, the logarithm of the sum of each position's exponentials in float32.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns the mixed values, [b, h, t, e]."""
        mixed, logarithm_bht = _FLASH(q, k, v, is_causal=True)
        ctx.save_for_backward(q, k, v, mixed, logarithm_bht)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        """Returns the gradients of q, k and v, in bfloat16."""
        *halves, logarithm_bht = ctx.saved_tensors
        wide = [x.float() for x in (*gradients, *halves)]
        found = _FLASH_BACKWARD(*wide, logarithm_bht, 0.0, is_causal=True)
        return tuple(x.to(torch.bfloat16) for x in found)


_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def exclusively_held(gradients: tuple[Tensor | None, ...]) -> list[bool]:
    """Whether each gradient that a backward method received is held by that call only.

    Then its memory may be written to. `gradients` is the tuple of all arguments behind the context.
    A hook that keeps a gradient, a capture by torch.autograd.grad and a gradient with two receivers
    have another reference, and a view or an expanded tensor another user of the memory. Relies on
    the counts of both being those of a gradient that is known to have no other holder; where they
    cannot be read, or are others in a new version, nothing is exclusive.
    """
    exclusive = _exclusive_counts()
    return [counts is not None and counts == exclusive for counts in _counts(gradients)]


def _counts(gradients: tuple[Tensor | None, ...]) -> list[tuple[int, int] | None]:
    """Of each gradient the references to it, and to its memory."""
    return [None if x is None else (sys.getrefcount(x), _memory_users(x)) for x in gradients]


def _memory_users(x: Tensor) -> int:
    return torch._C._storage_Use_Count(x.untyped_storage()._cdata)


@lru_cache
def _exclusive_counts() -> tuple[int, int] | None:
    """The counts of a gradient that only the engine holds, passed on as in `exclusively_held`."""
    if not hasattr(torch._C, "_storage_Use_Count"):
        return None
    found: list[tuple[int, int] | None] = []

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            found.append(_counts(gradients)[0])
            return torch.zeros(1)

    with torch.enable_grad():
        Probe.apply(Probe.apply(torch.zeros(1, requires_grad=True))).backward()
    return found[1]
