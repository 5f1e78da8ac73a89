"""Behaviour of PyTorch that training relies on and the documentation does not promise.

Used by pipelines.training. The model package has names of its own in dca/compat.py.
"""

import warnings
from collections.abc import Iterable
from inspect import unwrap

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

FUSED_DEVICES = ("cuda", "xpu", "mps", "cpu")
"""Device types with a fused AdamW: AdamW(fused=True) raises on others, and only a private function
lists them."""
FOUND_INF = "found_inf"
"""Attribute of an optimizer with which GradScaler makes a fused kernel skip its update: the kernel
reads it on the device, and no public argument of `step` does the same."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Tensors that AdamW keeps for each parameter: the memory estimate counts them."""


class AdamW(torch.optim.AdamW):
    """PyTorch's AdamW, whose methods import PyTorch's compiler, without these imports.

    They take 2 s in every process that trains. PyTorch wraps these methods to keep its compiler out
    of them; the optimizer is never compiled here. Relies on every wrapper's `__wrapped__`, and on
    that of `step` to do nothing else than switch gradients off.
    """

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
    state_dict = unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = unwrap(torch.optim.AdamW.load_state_dict)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


def step_unless(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
    """One step of a fused optimizer, unless `skip`, a tensor on the device, is 1."""
    setattr(optimizer, FOUND_INF, skip)
    optimizer.step()


def update_ema(average: Iterable[Tensor], weights: Iterable[Tensor], keep: float) -> None:
    """average = keep * average + (1 - keep) * weights, in place.

    The public function's order of arguments is documented by example only.
    """
    get_ema_multi_avg_fn(keep)([*average], [*weights], 0)


def ignore_view_warning() -> None:
    """Print no warning of fully_shard about blocks that return a view, from now on.

    It warns of operations in place on that view, which no block makes on what it reads; and knows
    the case by the text of the warning only. The values that value_residual passes on are a view.
    """
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
