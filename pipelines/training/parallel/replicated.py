"""Training with a whole model on each worker, PyTorch's DistributedDataParallel; or on one."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.training.device import rank_and_world


class Replicated:
    """Every worker holds all weights and makes the same update; their gradients are averaged.

    `Sharded` has the same methods.
    """

    gathers_weights = False
    """Whether the workers exchange weights in every pass, so that all must make as many."""

    def forward_of(self, model: nn.Module) -> nn.Module:
        """What a step calls in place of the model, whose weights are final: DDP copies rank 0's."""
        return DistributedDataParallel(model) if rank_and_world()[1] > 1 else model

    def accumulating(self, forward: nn.Module) -> AbstractContextManager[object]:
        """A context in which `backward` exchanges no gradients: they add up on each worker.

        `forward` is what `forward_of` returned.
        """
        return forward.no_sync() if isinstance(forward, DistributedDataParallel) else nullcontext()

    def clip(self, model: nn.Module, max_norm: float) -> Tensor:
        """Scale the gradients to at most that global norm; returns the norm before, a scalar.

        Nothing waits for the device.
        """
        return nn.utils.clip_grad_norm_(model.parameters(), max_norm)

    def part(self, weight: nn.Parameter) -> nn.Parameter:
        """What the optimizer updates on this worker for a weight of the model: all of it."""
        return weight

    def parts(self, model: nn.Module) -> list[nn.Parameter]:
        """`part` of each of the model's weights."""
        return [self.part(weight) for weight in model.parameters()]

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Prepare the states of an optimizer of `parts` for checkpoints."""

    def agree(self, answer: bool) -> bool:
        """Whether to write a checkpoint, which each worker may decide by itself."""
        return answer

    def gather(self, tensors: Mapping[str, Tensor], *, copies: bool) -> dict[str, Tensor]:
        """The whole tensors of a checkpoint, on rank 0; every rank must call it.

        As copies in the memory of the CPU if training goes on before they are written.
        """
        if not copies or rank_and_world()[0] != 0:
            return dict(tensors)
        return {name: value.to("cpu", copy=True) for name, value in tensors.items()}
