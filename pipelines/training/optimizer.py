"""AdamW with its parameter groups, and the learning-rate schedule."""

import math

import torch
from torch import nn

from pipelines.runtime.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW. Only the matrices of linear layers decay.

    Decay would pull the stack weights b from 1 to 0 and starve w, norms and embeddings.
    """
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    decayed = {id(weight) for weight in linear}
    others = [weight for weight in model.parameters() if id(weight) not in decayed]
    groups = [
        {"params": linear, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Learning rate of step `step` (from 0): linear warmup to the peak, then half a cosine."""
    warmup_steps = round(config.warmup_fraction * config.steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, config.steps - 1 - warmup_steps)
    floor = config.final_learning_rate_fraction
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (floor + (1 - floor) * cosine)
