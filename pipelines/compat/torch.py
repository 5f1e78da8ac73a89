"""Behaviour of PyTorch that training relies on and the documentation does not promise.

Used by pipelines.training. The model package has names of its own in dca/compat.py.
"""

from collections.abc import Iterable

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


def step_unless(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
    """One step of a fused optimizer, unless `skip`, a tensor on the device, is 1."""
    setattr(optimizer, FOUND_INF, skip)
    optimizer.step()


def update_ema(average: Iterable[Tensor], weights: Iterable[Tensor], keep: float) -> None:
    """average = keep * average + (1 - keep) * weights, in place.

    The public function's order of arguments is documented by example only.
    """
    get_ema_multi_avg_fn(keep)([*average], [*weights], 0)
