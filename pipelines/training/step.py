"""One optimizer step: gradients of a batch, clipping, update, average of the weights."""

import hashlib
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.data.batches import Batches
from pipelines.training.config import TrainingRun
from pipelines.training.device import autocast, rank_and_world, resolve_precision
from pipelines.training.evaluation import to_ids
from pipelines.training.optimizer import update, update_average
from pipelines.training.parallel import Replicated
from pipelines.training.schedule import learning_rate_at


class OptimizerStep:
    """Makes the steps of one training run; with several workers, this worker's part of each."""

    def __init__(
        self,
        run: TrainingRun,
        model: nn.Module,
        optimizer: torch.optim.AdamW,
        average: nn.Module | None,
        batches: Batches,
        sharing: Replicated,
    ) -> None:
        """`average` is the averaged model that follows `model`, if the run keeps one.

        `sharing` is how the workers share both, and the gradients.
        """
        self.config, self.seed, self.dropout = run.train, run.seed, run.model.dropout
        self.model, self.optimizer, self.average = model, optimizer, average
        self.batches = batches
        self.rank, self.world = rank_and_world()
        self.device = next(model.parameters()).device
        self.precision = resolve_precision(run.train.precision, run.model.dim, self.device)
        self.sharing, self.forward = sharing, sharing.forward_of(model)

    def __call__(self, step: int, non_finite: Tensor) -> tuple[Tensor, Tensor]:
        """Make step `step` (from 0); return this worker's loss and the global gradient norm.

        The loss is this worker's contribution: its mean over the workers is the batch's mean loss.

        `non_finite`, a scalar on the device, becomes 1 at the first gradient that is not finite and
        stays 1: the fused optimizer then skips this and all later updates on the device, so that no
        step has to wait for the host.
        """
        learning_rate = learning_rate_at(step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr_multiplier"] * learning_rate
        ids = to_ids(self.batches(step, self.rank, self.world), self.device)
        if self.dropout:  # a resumed run drops the same features, and no generator state is stored
            torch.manual_seed(step_seed(self.seed, step, self.rank))
        loss = self._backward(ids)
        norm = self.sharing.clip(self.model, self.config.grad_clip)
        torch.maximum(non_finite, (~torch.isfinite(norm)).to(non_finite.dtype), out=non_finite)
        update(self.optimizer, non_finite)
        if self.average is not None and self.config.ema_decay:
            average, weights = map(self.sharing.parts, (self.average, self.model))
            update_average(average, weights, step, self.config.ema_decay)
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm

    def _backward(self, ids: Tensor) -> Tensor:
        """Accumulate the gradient of the mean loss of [sequences, t + 1] ids in micro-batches.

        Workers may have unequal numbers of sequences: the mean over the workers is that of the
        batch. They exchange gradients in the last micro-batch.
        """
        micro_tokens = self.config.micro_batch_tokens or self.config.batch_tokens
        micro_batches = ids.split(micro_tokens // self.config.seq_len)
        total = torch.zeros((), device=self.device)
        mean_sequences = self.config.batch_tokens / self.config.seq_len / self.world
        with autocast(self.device, self.precision):
            for number, micro_bt in enumerate(micro_batches, 1):
                last = number == len(micro_batches)
                with nullcontext() if last else self.sharing.accumulating(self.forward):
                    logits_btv = self.forward(micro_bt[:, :-1]).flatten(0, 1).float()
                    loss = F.cross_entropy(logits_btv, micro_bt[:, 1:].flatten())
                    loss = loss * (len(micro_bt) / mean_sequences)
                    loss.backward()
                total += loss.detach()
        return total


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of the random numbers of one step on one rank."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()[:8])
