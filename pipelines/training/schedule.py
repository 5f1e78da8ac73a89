"""The learning rate as a function of the step: cosine, warmup-stable-decay (wsd), inverse_sqrt."""

import math

from pipelines.training.config import TrainConfig


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """The learning rate of step `step` (from 0): linear warmup to the peak, then the schedule."""
    steps, last = config.steps, config.steps - 1
    warmup_steps = round(config.warmup_fraction * steps)
    if config.schedule == "inverse_sqrt":
        warmup_steps = max(1, warmup_steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    if config.schedule == "inverse_sqrt":
        return config.learning_rate * math.sqrt(warmup_steps / (step + 1))
    if config.schedule == "wsd":
        share = min(1.0, (last - step) / round(max(1, config.decay_share * steps)))
    else:  # cosine
        progress = (step - warmup_steps) / max(1, last - warmup_steps)
        share = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_share + (1 - config.final_share) * share)
