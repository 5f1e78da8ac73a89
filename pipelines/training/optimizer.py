"""AdamW with its parameter groups, and the learning-rate schedule."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dca.residuals.grn import GRN
from pipelines.training.config import TrainConfig
from pipelines.training.device import FUSED


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW, fused where the device has that; `rate` scales a group's schedule.

    Only the matrices of linear layers decay. It would pull the stack weights b from 1 to 0 and
    starve w, norms and embeddings.
    """
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    mixtures = [module for module in model.modules() if isinstance(module, GRN)]
    b = [mixture.b_ond for mixture in mixtures]
    w = [mixture.w_od for mixture in mixtures if mixture.w_od is not None]
    grouped = {id(weight) for weight in [*linear, *b, *w]}
    others = [weight for weight in model.parameters() if id(weight) not in grouped]
    groups = [
        {"params": linear, "rate": 1.0, "weight_decay": config.weight_decay},
        {"params": others, "rate": 1.0, "weight_decay": 0.0},
        {"params": b, "rate": config.grn_b_rate, "weight_decay": 0.0},
        {"params": w, "rate": config.grn_w_rate, "weight_decay": 0.0},
    ]
    used = [group for group in groups if group["params"]]
    betas = (config.beta1, config.beta2)
    fused = next(model.parameters()).device.type in FUSED
    return torch.optim.AdamW(used, lr=config.learning_rate, betas=betas, fused=fused)


def update(optimizer: torch.optim.AdamW, bad: Tensor) -> None:
    """One step, unless `bad` is 1.

    The fused kernel reads `bad` on the device, so that the host need not wait for it. Elsewhere (a
    TPU) the host looks: one transfer a step.
    """
    if optimizer.defaults["fused"]:
        optimizer.found_inf = bad  # type: ignore[attr-defined]  # read by the fused kernel
        optimizer.step()
    elif not bad:
        optimizer.step()


def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Fold the weights after step `step` (from 0) into their exponential moving average.

    The decay grows as min(decay, (1 + step) / (10 + step)), as in TensorFlow's
    ExponentialMovingAverage: the random weights at the start are forgotten within a few steps, and
    a run that is short beside 1 / (1 - decay) still averages its last tenth or so. PyTorch's own
    average starts with the first weights at full decay.
    """
    keep = min(decay, (1 + step) / (10 + step))
    get_ema_multi_avg_fn(keep)(list(average.parameters()), list(model.parameters()), step)
