"""Behaviour of PyTorch that the model relies on and the documentation does not promise.

Used by dca.config and dca.kernels. Each name has its reason; a test fails when PyTorch changes it.
"""

from typing import Any

from torch import nn
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
