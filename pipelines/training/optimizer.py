"""AdamW with its parameter groups, and the learning-rate schedule."""

import math

import torch
from torch import nn

from dca.residuals.grn import GRN
from pipelines.runtime.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW. Only the matrices of linear layers decay; `rate` scales a group's schedule.

    Decay would pull the stack weights b from 1 to 0 and starve w, norms and embeddings.
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
    return torch.optim.AdamW(used, lr=config.learning_rate, betas=betas, fused=True)


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Learning rate of step `step` (from 0): linear warmup to the peak, then half a cosine."""
    warmup_steps = round(config.warmup_fraction * config.steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, config.steps - 1 - warmup_steps)
    floor = config.final_learning_rate_fraction
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (floor + (1 - floor) * cosine)
