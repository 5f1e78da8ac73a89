"""How several workers share one training: by copies of the model (DDP), or by parts of it (FSDP).

Used by the trainer, its steps and its optimizer. With one worker everything is as with copies.
"""

from collections.abc import Sequence

import torch
from torch import nn

from pipelines.training.device import rank_and_world
from pipelines.training.parallel.replicated import Replicated

__all__ = ["Replicated", "share"]


def share(
    strategy: str, models: Sequence[nn.Module], device: torch.device, precision: str
) -> Replicated:
    """Move models that train together to this worker's device: whole ones, or its parts of them.

    Args:
        strategy: `resources.strategy`: ddp or fsdp.
        models: The model that is trained, and its average if there is one, equal on all workers.
        device: This worker's.
        precision: Of matrix products: float32 or bfloat16.

    """
    if strategy == "fsdp" and rank_and_world()[1] > 1:
        from pipelines.training.parallel.sharded import Sharded  # imports a second's worth

        return Sharded(models, device, precision)
    for model in models:
        model.to(device)
    return Replicated()
