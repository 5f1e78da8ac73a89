"""AdamW with its parameter groups, its update, and the exponential average of the weights."""

import torch
from torch import Tensor, nn

from pipelines.compat.torch import FUSED_DEVICES, AdamW, step_unless, update_ema
from pipelines.training.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> AdamW:
    """AdamW, fused where the device supports it; `lr_multiplier` scales a group's learning rate.

    Only the matrices of linear layers have weight decay. It would pull the stack weights b from 1
    to 0, and w, norm gains and embeddings towards 0.
    """
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    b, w = _named(model, "b_ond"), _named(model, "w_od")
    grouped = {id(weight) for weight in [*linear, *b, *w]}
    others = [weight for weight in model.parameters() if id(weight) not in grouped]
    groups = [
        {"params": linear, "lr_multiplier": 1.0, "weight_decay": config.weight_decay},
        {"params": others, "lr_multiplier": 1.0, "weight_decay": 0.0},
        {"params": b, "lr_multiplier": config.grn_b_rate, "weight_decay": 0.0},
        {"params": w, "lr_multiplier": config.grn_w_rate, "weight_decay": 0.0},
    ]
    used = [group for group in groups if group["params"]]
    betas = (config.beta1, config.beta2)
    fused = next(model.parameters()).device.type in FUSED_DEVICES
    return AdamW(used, lr=config.learning_rate, betas=betas, fused=fused)


def _named(model: nn.Module, own_name: str) -> list[nn.Parameter]:
    """The parameters that their modules call so: b and w of the mixtures, in any residual kind.

    By name, because the code of one kind is no part of the others' training.
    """
    found = model.named_parameters()
    return [weight for name, weight in found if name.rpartition(".")[2] == own_name]


def update(optimizer: torch.optim.AdamW, non_finite: Tensor) -> None:
    """One step, unless `non_finite` is 1.

    A fused kernel reads it on the device, so that the host need not wait. On other devices (a TPU)
    the host reads it: one transfer a step.
    """
    if optimizer.defaults["fused"]:
        step_unless(optimizer, non_finite)
    elif not non_finite:
        optimizer.step()


def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Add the weights after step `step` (from 0) to their exponential moving average.

    The decay grows as min(decay, (1 + step) / (10 + step)), as in TensorFlow's
    ExponentialMovingAverage: the random weights at the start lose their share within a few steps,
    and a run that is short compared with 1 / (1 - decay) still averages about its last tenth.
    PyTorch's AveragedModel would start with the first weights at full decay.
    """
    keep = min(decay, (1 + step) / (10 + step))
    update_ema(average.parameters(), model.parameters(), keep)
